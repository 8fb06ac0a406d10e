"""Sparse vectors from a real server, over both protocols; and what is refused."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from tritonclient.utils import InferenceServerException

import trimtab
from tests import hostile, sparse_made
from tests.hostile import DIMENSIONS, WORDS
from tests.server.server_process import ServerProcess, serve
from tests.sparse_made import VOCABULARY, truth
from trimtab.artifacts import bundle as bundles
from trimtab.core import steps
from trimtab.errors import BundleError
from trimtab.outputs.sparse import SparseForm
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab.values import sparse
from trimtab.values.sparse import SparseVectors

TEXTS = ["w1 w2 w3", "w7", "w10 w11 w10 w12 w13 w14 w15", "", "w49 w1"]
BOTH = ("dense", "sparse")


def falling() -> bytes:
    """A graph whose indices fall."""
    return sparse_made.graph([helper.make_node("Neg", ["places"], ["turned_round"])], indices="turned_round")


def nothing() -> bytes:
    """A graph whose values are 0."""
    return sparse_made.graph([helper.make_node("Sub", ["weights", "weights"], ["zeros"])], values="zeros")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`both` gives dense vectors first, `splade` sparse ones; the others give what is no sparse vector."""
    folder = tmp_path_factory.mktemp("sparse")
    sparse_made.bundle(folder, "both")
    sparse_made.bundle(folder, "splade", sparse_first=True)
    sparse_made.bundle(folder, "cosines", sparse_first=True, similarity="cosine")
    sparse_made.bundle(folder, "wide", dimensions=30522)
    sparse_made.bundle(folder, "own", dimensions=250002, settings={**sparse_made.SETTINGS, "per_token": True})
    sparse_made.bundle(folder, "falling", falling(), sparse_first=True)
    sparse_made.bundle(folder, "nothing", nothing(), sparse_first=True)
    sparse_made.bundle(folder, "many", settings={**sparse_made.SETTINGS, "top_k": 2})
    return folder


@pytest.fixture(scope="module")
def running(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("served"), "sharing.cache_bytes = 1000000") as server:
        yield server


@pytest.fixture(scope="module")
def client(running: ServerProcess) -> Iterator[trimtab.Client]:
    with trimtab.Client(running.url, timeout=100) as opened:
        yield opened


def check(found: SparseVectors, texts: Sequence[str]) -> None:
    expected = truth(texts)
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    assert found.dimensions == VOCABULARY


def test_both_outputs_come_from_one_pass(client: trimtab.Client) -> None:
    found = client.embed_outputs(TEXTS, BOTH, encoder="both")
    check(found["sparse"], TEXTS)
    np.testing.assert_allclose(found["dense"], hostile.vectors(TEXTS), atol=1e-5)
    assert found.spaces["dense"] != found.spaces["sparse"]
    assert found.token_counts.tolist() == [5, 3, 9, 2, 4]
    assert 0 < len(found["sparse"].indices) < len(TEXTS) * VOCABULARY, (
        "some components are 0, and some are not"
    )
    only = client.embed_outputs(TEXTS, ["sparse"], encoder="splade")
    check(only["sparse"], TEXTS)
    assert list(only) == ["sparse"]


def test_an_async_client_gets_the_same(running: ServerProcess) -> None:
    async def ask() -> trimtab.Outputs:
        async with trimtab.AsyncClient(running.url, timeout=100) as client:
            return await client.embed_outputs(TEXTS, BOTH, encoder="both")

    check(asyncio.run(ask())["sparse"], TEXTS)


def test_halves_keep_every_entry(client: trimtab.Client) -> None:
    whole, half = (
        client.embed_outputs(TEXTS, ["sparse"], encoder="both", dtype=dtype)["sparse"]
        for dtype in ("float32", "float16")
    )
    assert half.values.dtype == np.float16
    np.testing.assert_array_equal(half.indices, whole.indices)
    np.testing.assert_array_equal(half.values, whole.values.astype(np.float16))


TEXT = st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_neighbours_order_and_padding_do_not_matter(
    client: trimtab.Client, texts: list[str], random: Any
) -> None:
    """Each text has the entries that it has alone, whoever is beside it, however long, and wherever."""
    found = client.embed_outputs(texts, BOTH, encoder="both")["sparse"]
    check(found, texts)
    order = random.sample(range(len(texts)), len(texts))
    turned = client.embed_outputs([texts[place] for place in order], ["sparse"], encoder="both")["sparse"]
    for row, place in enumerate(order):
        np.testing.assert_array_equal(turned[row][0], found[place][0])
        np.testing.assert_allclose(turned[row][1], found[place][1], atol=1e-6)


def test_clients_split_what_may_have_too_large_an_answer(client: trimtab.Client) -> None:
    """A vector may have an entry for each of 30,522 words, until the graph has run."""
    with pytest.raises(trimtab.InvalidArgument, match=r"may hold up to .* tokens, this server takes"):
        asked = pb.EmbedRequest(encoder="wide", texts=["w1"] * 1024, outputs=["sparse"])
        client._run(iter_of(asked), None)
    assert client.encoder("wide").limits.max_texts == (1 << 20) // 8 // ((8 * 30522 + 64) // 128)
    assert client.encoder("both").limits.max_texts == 1024
    found = client.embed_outputs(["w1"] * 1024, ["sparse"], encoder="wide")["sparse"]
    assert (len(found), found.dimensions) == (1024, 30522)
    assert {len(indices) for indices, _ in found} == {len(truth(["w1"]).indices)}


def test_weights_of_tokens_are_counted_by_tokens(client: trimtab.Client) -> None:
    """The vocabulary's size says nothing of what a text may have."""
    assert client.encoder("own").limits.max_texts == 1024
    asked = pb.EmbedRequest(encoder="own", texts=["w1"] * 1024, outputs=["sparse"])
    answer = client._run(iter_of(asked), None)
    assert len(sparse.unpack(answer.outputs[0].sparse)) == 1024


@pytest.mark.parametrize(
    ("changes", "most"),
    [({}, VOCABULARY), ({"top_k": 3}, 3), ({"per_token": True}, 0), ({"per_token": True, "top_k": 3}, 3)],
)
def test_how_many_entries_an_item_may_have(repository: Path, changes: dict[str, Any], most: int) -> None:
    """0: one for each unit."""
    declared = bundles.read(repository / "splade" / "1").manifest.output
    changed = msgspec.structs.replace(declared, settings={**declared.settings, **changes})
    assert {column.most for column in SparseForm.columns(changed)} == {most}
    assert not any(faulty for faulty, _ in SparseForm.doubts(changed))


def iter_of(request: pb.EmbedRequest) -> Any:
    """One call of Embed, as it is."""
    return steps.ask("Embed", request)


def test_a_stream_carries_them(running: ServerProcess) -> None:
    asked = [
        pb.EmbedStreamRequest(id=7, request=pb.EmbedRequest(encoder="both", texts=TEXTS, outputs=["sparse"])),
        pb.EmbedStreamRequest(id=8, request=pb.EmbedRequest(encoder="splade", texts=TEXTS[:1])),
    ]
    with grpc.insecure_channel(running.url) as channel:
        answers = encoder_pb2_grpc.EncoderServiceStub(channel).EmbedStream(iter(asked))
        found = {answer.id: answer.response.outputs[0].sparse for answer in answers}
    check(sparse.unpack(found[7]), TEXTS)
    check(sparse.unpack(found[8]), TEXTS[:1])


def test_it_is_described(running: ServerProcess) -> None:
    with grpc.insecure_channel(running.url) as channel:
        described = encoder_pb2_grpc.EncoderServiceStub(channel).GetEncoder(
            pb.GetEncoderRequest(encoder="splade")
        )
    first, second = described.outputs
    assert (first.name, first.kind, first.form, first.dimensions) == (
        "sparse",
        "sparse",
        "sparse",
        VOCABULARY,
    )
    assert (first.similarity, second.name) == ("dot", "dense")
    assert described.space == first.space != second.space


def test_candidates_are_scored_by_the_dot_product(client: trimtab.Client) -> None:
    texts = [text for text in TEXTS if text]
    query = "w1 w3 w10"
    long = truth([query, *texts]).to_scipy().toarray()
    scores = client.rescore(query, texts, encoder="splade")
    np.testing.assert_allclose(scores, long[1:] @ long[0], rtol=1e-4, atol=1e-6)
    known = {text.replace(" ", "-"): text for text in texts}
    for _ in range(2):  # the second time, what is remembered is scored
        again = client.rescore(query, list(known), texts=known, encoder="splade")
        np.testing.assert_array_equal(again, scores)
    unit = long / np.linalg.norm(long, axis=1, keepdims=True)
    cosines = client.rescore(query, texts, encoder="cosines")
    np.testing.assert_allclose(cosines, unit[1:] @ unit[0], rtol=1e-4, atol=1e-6)


# -- KServe v2, by NVIDIA's client as it is --------------------------------------------------------------


def infer(url: str, encoder: str, *names: str, texts: Sequence[str] = TEXTS, **parameters: Any) -> Any:
    tensor = triton.InferInput("text", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], object))
    outputs = [triton.InferRequestedOutput(name) for name in names] or None
    with triton.InferenceServerClient(url) as infers:
        return infers.infer(encoder, [tensor], outputs=outputs, parameters=parameters or None)


def of(result: Any) -> SparseVectors:
    indices, values, offsets = (
        result.as_numpy(f"sparse_{name}") for name in ("indices", "values", "offsets")
    )
    assert (indices.dtype, offsets.dtype) == (np.int32, np.int32)
    return SparseVectors(offsets, indices, values, VOCABULARY)


PARTS = ("sparse_indices", "sparse_values", "sparse_offsets")


def test_tritonclient_asks_for_them_by_name(running: ServerProcess) -> None:
    result = infer(running.url, "both", *PARTS, "embeddings", "token_count")
    check(of(result), TEXTS)
    np.testing.assert_allclose(result.as_numpy("embeddings"), hostile.vectors(TEXTS), atol=1e-5)
    assert result.as_numpy("token_count").ravel().tolist() == [5, 3, 9, 2, 4]
    parameters = result.get_response().parameters
    assert parameters["space"].string_param != parameters["dense_space"].string_param != ""
    check(of(infer(running.url, "both", *PARTS)), TEXTS)
    alone = infer(running.url, "both", "sparse_offsets")
    assert alone.as_numpy("sparse_offsets").tolist() == truth(TEXTS).indptr.tolist()
    assert alone.as_numpy("sparse_values") is None


def test_without_names_tritonclient_gets_the_first_output(running: ServerProcess) -> None:
    first = infer(running.url, "both")
    assert [each.name for each in first.get_response().outputs] == ["embeddings", "token_count"]
    result = infer(running.url, "splade", embedding_type="float16")
    assert [each.name for each in result.get_response().outputs] == [*PARTS, "token_count"]
    assert result.as_numpy("sparse_values").dtype == np.float16
    np.testing.assert_array_equal(of(result).indices, truth(TEXTS).indices)


def test_tritonclient_is_told_what_there_is(running: ServerProcess) -> None:
    with triton.InferenceServerClient(running.url) as infers:
        metadata = infers.get_model_metadata("both", as_json=True)["outputs"]
        config = infers.get_model_config("both", as_json=True)["config"]["output"]
    assert [(each["name"], each["datatype"], each["shape"]) for each in metadata] == [
        ("embeddings", "FP32", ["-1", str(DIMENSIONS)]),
        ("sparse_indices", "INT32", ["-1"]),
        ("sparse_values", "FP32", ["-1"]),
        ("sparse_offsets", "INT32", ["-1"]),
        ("token_count", "INT32", ["-1", "1"]),
    ]
    assert [each["name"] for each in config] == [each["name"] for each in metadata]
    assert config[1]["data_type"] == "TYPE_INT32"


@pytest.mark.parametrize(
    ("encoder", "names", "parameters", "message"),
    [
        ("both", ("sparse",), {}, "output 'sparse' is not known; there are embeddings, sparse_indices, "),
        ("splade", ("embeddings",), {}, "output 'embeddings' is not known; there are sparse_indices, "),
        ("both", PARTS, {"dimensions": 4}, "dimensions is 4, and the sparse vectors"),
        ("both", PARTS, {"embedding_type": "int8"}, "dtype is int8, and encoder both gives sparse vectors"),
    ],
)
def test_what_tritonclient_may_not_ask_for(
    running: ServerProcess, encoder: str, names: Sequence[str], parameters: Any, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=f"INVALID_ARGUMENT.*{message}"):
        infer(running.url, encoder, *names, **parameters)


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"encoder": "both", "outputs": ["sparse"], "dtype": "int8"},
            "dtype is int8, and encoder both gives sparse vectors: ask for float32 or float16",
        ),
        (
            {"encoder": "both", "outputs": BOTH, "dtype": "ubinary"},
            "dtype is ubinary, and encoder both gives sparse vectors: ask for float32 or float16",
        ),
        (
            {"encoder": "both", "outputs": ["sparse"], "dimensions": 8},
            "dimensions is 8, and the sparse vectors of encoder both cannot be cut: .* Leave dimensions out",
        ),
        (
            {"encoder": "both", "outputs": ["lexical"]},
            "encoder both has no output 'lexical'; it has dense, sparse",
        ),
    ],
)
def test_what_sparse_vectors_do_not_offer(client: trimtab.Client, asked: Any, message: str) -> None:
    with pytest.raises(trimtab.InvalidArgument, match=message):
        client.embed_outputs(TEXTS, asked.pop("outputs"), **asked)


def test_embed_says_how_to_get_them(client: trimtab.Client) -> None:
    with pytest.raises(
        trimtab.FailedPrecondition, match=r"splade gives sparse \(sparse\).*call embed_outputs"
    ):
        client.embed(TEXTS, encoder="splade")


def test_another_space_is_for_dense_vectors(client: trimtab.Client) -> None:
    with pytest.raises(trimtab.NotFound, match="is not in reach"):
        client.embed_outputs(TEXTS, BOTH, encoder="both", space="f" * 16)


@pytest.mark.parametrize("encoder", ["both", "splade"])
def test_sparse_vectors_are_given_in_their_own_space_alone(running: ServerProcess, encoder: str) -> None:
    other = "0123456789abcdef"
    with grpc.insecure_channel(running.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        described = stub.GetEncoder(pb.GetEncoderRequest(encoder=encoder))
        own = {each.name: each.space for each in described.outputs}
        sparse_own, dense_own = own["sparse"], own["dense"]

        def code(*spaces: str, outputs: Sequence[str] = ("sparse",)) -> grpc.StatusCode:
            asked = pb.EmbedRequest(encoder=encoder, texts=["w1"], spaces=spaces, outputs=outputs)
            with pytest.raises(grpc.RpcError) as refused:
                stub.Embed(asked)
            found: grpc.StatusCode = refused.value.code()
            return found

        for spaces in ([other], [dense_own], [sparse_own, other]):
            assert code(*spaces) is grpc.StatusCode.NOT_FOUND
        assert code(sparse_own, sparse_own) is grpc.StatusCode.INVALID_ARGUMENT
        assert code(*(f"{number:016x}" for number in range(9))) is grpc.StatusCode.INVALID_ARGUMENT
        asked = pb.EmbedRequest(encoder=encoder, texts=TEXTS, spaces=[sparse_own], outputs=["sparse"])
        (given,) = stub.Embed(asked).outputs
        assert given.space == sparse_own
        check(sparse.unpack(given.sparse), TEXTS)
        if encoder == "splade":  # whose first output is sparse, so that adapters map nothing
            assert code(other, outputs=()) is grpc.StatusCode.NOT_FOUND
            assert code(other, outputs=BOTH) is grpc.StatusCode.NOT_FOUND
            both = stub.Embed(
                pb.EmbedRequest(encoder=encoder, texts=["w1"], spaces=[dense_own, sparse_own], outputs=BOTH)
            )
            assert {each.name: each.space for each in both.outputs} == own


def test_all_clients_are_told_of_a_space_that_sparse_vectors_are_not_in(
    running: ServerProcess, client: trimtab.Client
) -> None:
    for encoder in ("both", "splade"):
        with pytest.raises(
            trimtab.NotFound, match=f"encoder {encoder} gives sparse in .*leave the space out"
        ):
            client.embed_outputs(TEXTS, ["sparse"], encoder=encoder, space="0123456789abcdef")
        with pytest.raises(InferenceServerException, match=r"NOT_FOUND.* is not in reach"):
            infer(running.url, encoder, *PARTS, space="0123456789abcdef")
        own = client.embed_outputs(["w1"], ["sparse"], encoder=encoder).spaces["sparse"]
        check(of(infer(running.url, encoder, *PARTS, space=own)), TEXTS)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("falling", "the graph of encoder falling gave wrong numbers: its sparse vectors have"),
        (
            "nothing",
            "encoder nothing gave wrong numbers: its sparse vectors have values that are not above 0",
        ),
    ],
)
def test_a_graph_that_gives_no_sparse_vectors_is_at_fault(
    client: trimtab.Client, encoder: str, message: str
) -> None:
    with pytest.raises(trimtab.InternalError, match=message):
        client.embed_outputs(TEXTS, ["sparse"], encoder=encoder)


def test_a_graph_that_gives_more_entries_than_its_manifest_says_is_not_served(client: trimtab.Client) -> None:
    with pytest.raises(
        trimtab.FailedPrecondition, match=r"many version 1 is not served: .* rows as .* at most 2"
    ):
        client.embed_outputs(TEXTS, ["sparse"], encoder="many")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {}}, "has settings that cannot be: .*activation"),
        ({"settings": {**sparse_made.SETTINGS, "activation": "tanh"}}, "has settings that cannot be"),
        ({"settings": {**sparse_made.SETTINGS, "top_n": 3}}, "has settings that cannot be: .*top_n"),
        ({"settings": {**sparse_made.SETTINGS, "top_k": 55}}, "keeps 55 entries of 54 dimensions"),
        ({"settings": {**sparse_made.SETTINGS, "stop_tokens": [3, 1]}}, "has stop_tokens that do not rise"),
        (
            {"settings": {**sparse_made.SETTINGS, "stop_tokens": [54]}},
            "has stop_tokens beyond its dimensions",
        ),
        ({"similarity": "euclidean"}, "compares by euclidean; sparse vectors by dot or cosine"),
        ({"normalized": True}, "is normalised, and sparse vectors are not"),
        ({"int8_limit": 1.0}, "has a range of int8"),
    ],
)
def test_what_a_manifest_may_not_say(tmp_path: Path, changes: Any, message: str) -> None:
    folder = sparse_made.bundle(tmp_path, "odd", **changes)
    with pytest.raises(BundleError, match=f"says that the output sparse {message}"):
        bundles.read(folder)


def test_settings_are_part_of_the_space(tmp_path: Path) -> None:
    spaces = set()
    for number, more in enumerate(({}, {"top_k": 4}, {"stop_tokens": [1]}, {"pooling": "sum"})):
        folder = sparse_made.bundle(tmp_path, f"e{number}", settings={**sparse_made.SETTINGS, **more})
        spaces.add(msgspec.json.decode((folder / bundles.MANIFEST).read_bytes())["outputs"][1]["space"])
    assert len(spaces) == 4
