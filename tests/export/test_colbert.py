"""ColBERT encoders: exported, compared with PyLate's own vectors, and served over both protocols."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

import trimtab
from tests import colbert_made
from tests.colbert_made import DOCUMENTS, GOLDEN, KINDS, QUERIES, WIDTH
from tests.server.server_process import ServerProcess, serve
from trimtab.artifacts import bundle as bundles
from trimtab.cli import main
from trimtab.errors import ExportError
from trimtab.kinds import Role
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab.values.multi_vector import MultiVectors, maxsim
from trimtab_export.export import export
from trimtab_export.load import load
from trimtab_export.source import Settings

TOLERANCE = 1e-4
SERVED = ("plain", "attended", "stanford")
TEXTS: dict[Role, list[str]] = {"query": QUERIES, "passage": DOCUMENTS}
CONFIG = """
sharing.cache_bytes = 1000000
limits.max_texts = 32
"""


@pytest.fixture(scope="module")
def folders(minilm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an encoder of each kind."""
    home = tmp_path_factory.mktemp("colbert")

    def folder(kind: str) -> Path:
        path = home / kind
        return path if path.exists() else colbert_made.make(path, minilm_source, kind)

    return folder


@pytest.fixture(scope="module")
def repository(folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    for kind in SERVED:
        export(Settings(str(folders(kind))), kind, repository)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("served"), CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[trimtab.Client]:
    with trimtab.Client(server.url, timeout=100) as opened:
        yield opened


class Golden(NamedTuple):
    """What PyLate gives: the vectors of the texts of each role, and the score of each query and document."""

    vectors: dict[Role, MultiVectors]
    scores: np.ndarray


def golden(kind: str) -> Golden:
    found = np.load(GOLDEN)
    roles: tuple[Role, ...] = ("query", "passage")
    vectors = {
        role: MultiVectors(
            found[f"{kind}.{role}"], np.cumsum([0, *found[f"{kind}.{role}.rows"]]).astype(np.int64)
        )
        for role in roles
    }
    return Golden(vectors, found[f"{kind}.scores"])


def same(found: MultiVectors, expected: MultiVectors, atol: float = TOLERANCE) -> None:
    assert found.offsets.tolist() == expected.offsets.tolist()
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=atol)


def embed(client: trimtab.Client, texts: list[str], role: Role, **options: Any) -> MultiVectors:
    options = {"encoder": "plain", "role": role, **options}
    found = client.embed_outputs(texts, ["multi_vector"], **options)["multi_vector"]
    assert isinstance(found, MultiVectors)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_pylates(kind: str, folders: Callable[[str], Path]) -> None:
    """By which each export is checked."""
    source, expected = load(Settings(str(folders(kind)))), golden(kind)
    (output,) = source.outputs
    assert output.reference is not None
    found = {}
    for role in source.roles:
        column = output.reference(TEXTS[role], role)["multi_vector"]
        assert column.offsets is not None
        found[role] = MultiVectors(column.values, column.offsets)
        same(found[role], expected.vectors[role])
    np.testing.assert_allclose(found["query"].maxsim(found["passage"]), expected.scores, atol=TOLERANCE)


@pytest.mark.parametrize("kind", SERVED)
def test_a_server_gives_pylates_vectors_and_scores(client: trimtab.Client, kind: str) -> None:
    expected = golden(kind)
    found = {role: embed(client, TEXTS[role], role, encoder=kind) for role in TEXTS}
    for role in TEXTS:
        same(found[role], expected.vectors[role])
    scores = found["query"].maxsim(found["passage"])
    np.testing.assert_allclose(scores, expected.scores, atol=TOLERANCE)
    for query, near in zip(QUERIES[1:], expected.scores[1:], strict=True):
        np.testing.assert_allclose(client.rescore(query, DOCUMENTS, encoder=kind), near, atol=TOLERANCE)


def test_what_the_bundle_says(repository: Path, client: trimtab.Client, server: ServerProcess) -> None:
    manifests = {kind: bundles.read(repository / kind / "1").manifest for kind in SERVED}
    manifest = manifests["plain"]
    (output,) = manifest.outputs
    assert (output.name, output.kind, output.dimensions, output.normalized) == (
        "multi_vector", "multi_vector", WIDTH, True,
    )  # fmt: skip
    assert output.int8_limit is not None and 0.5 < output.int8_limit <= 1
    assert manifest.input.most_units == 180 and manifest.variants[0].unpadded
    query, passage = manifest.input.settings["query"], manifest.input.settings["passage"]
    assert (query["most"], query["marker"], query["fill"], query["attended"]) == (32, 30522, 103, False)
    assert (passage["most"], passage["marker"], passage["fill"]) == (180, 30523, None)
    assert len(passage["skipped"]) == 32
    assert len({each.space for each in manifests.values()}) == len(SERVED)
    (described,) = client.encoder("plain").outputs
    assert (described.kind, described.similarity) == ("multi_vector", "maxsim")
    with grpc.insecure_channel(server.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        assert stub.GetEncoder(pb.GetEncoderRequest(encoder="plain")).inputs[0].needs_role


def test_the_vectors_are_counted(client: trimtab.Client, server: ServerProcess) -> None:
    name = 'trimtab_output_rows_total{encoder="plain",output="multi_vector",version="1"}'
    before = server.metrics().get(name, 0.0)
    found = embed(client, DOCUMENTS, "passage", max_vectors=2)
    assert len(found.vectors) < len(golden("plain").vectors["passage"].vectors)
    assert server.metrics()[name] == before + len(golden("plain").vectors["passage"].vectors)


def test_an_async_client_gets_the_same(server: ServerProcess) -> None:
    async def ask() -> trimtab.Outputs:
        async with trimtab.AsyncClient(server.url, timeout=100) as client:
            return await client.embed_outputs(DOCUMENTS, ["multi_vector"], encoder="plain", role="passage")

    same(asyncio.run(ask())["multi_vector"], golden("plain").vectors["passage"])


def test_nvidias_client_asks_for_tensors(server: ServerProcess) -> None:
    tensor = triton.InferInput("text", [len(DOCUMENTS), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in DOCUMENTS], object))
    names = ("token_vectors", "token_offsets")
    expected = golden("plain").vectors["passage"]
    with triton.InferenceServerClient(server.url) as infers:
        metadata = infers.get_model_metadata("plain", as_json=True)
        assert [each["name"] for each in metadata["outputs"]] == [*names, "token_count"]
        for wanted in (None, [triton.InferRequestedOutput(name) for name in names]):
            answer = infers.infer("plain", [tensor], outputs=wanted, parameters={"input_type": "passage"})
            vectors, offsets = (answer.as_numpy(name) for name in names)
            assert offsets.dtype == np.int32
            same(MultiVectors(vectors, offsets.astype(np.int64)), expected)
        packed = infers.infer(
            "plain", [tensor],
            parameters={"input_type": "passage", "embedding_type": "int8", "max_vectors": 4, "dimensions": 8},
        )  # fmt: skip
        vectors, offsets = (packed.as_numpy(name) for name in names)
        assert vectors.dtype == np.int8 and vectors.shape[1] == 8 and np.diff(offsets).max() == 4
        scale = packed.get_response().parameters["scale"].double_param
        exact = embed_alone(server, max_vectors=4, dimensions=8)
        np.testing.assert_allclose(vectors * scale, exact.vectors, atol=scale)
        for wrong, message in (
            ("embeddings", "output 'embeddings' is not known; there are token_vectors, token_offsets"),
            ("sparse_values", "output 'sparse_values' is not known"),
        ):
            with pytest.raises(InferenceServerException, match=message):
                infers.infer("plain", [tensor], outputs=[triton.InferRequestedOutput(wrong)])


def embed_alone(server: ServerProcess, **options: Any) -> MultiVectors:
    with trimtab.Client(server.url, timeout=100) as client:
        return embed(client, DOCUMENTS, "passage", **options)


WORD = st.sampled_from(["deleted", "file", "Größe", "!", "(", "日本", "the", "journal's", "restore", "😀"])
TEXT = st.lists(WORD, max_size=40).map(" ".join)
QUICK = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(
    st.lists(TEXT, min_size=1, max_size=8), st.sampled_from(list(TEXTS)), st.randoms(use_true_random=False)
)
def test_neighbours_order_and_padding_do_not_matter(
    client: trimtab.Client, texts: list[str], role: Role, random: Any
) -> None:
    found = embed(client, texts, role)
    order = random.sample(range(len(texts)), len(texts))
    moved = embed(client, [texts[place] for place in order], role)
    longer = embed(client, [*texts, "a very long text " * 60], role)
    for place, text in enumerate(texts):
        (alone,) = embed(client, [text], role)
        for other in (moved[order.index(place)], longer[place], alone):
            np.testing.assert_allclose(other, found[place], atol=1e-6)


@QUICK
@given(st.lists(TEXT, min_size=1, max_size=6), st.sampled_from(["float32", "float16", "int8", "ubinary"]))
def test_scores_are_those_of_loops(client: trimtab.Client, texts: list[str], dtype: Any) -> None:
    query = embed(client, ["restore the file"], "query", dtype=dtype)
    documents = embed(client, texts, "passage", dtype=dtype)

    def numbers(rows: np.ndarray, scale: float) -> np.ndarray:
        if dtype != "ubinary":
            return rows.astype(np.float64) * (scale or 1.0)
        return (np.unpackbits(rows, axis=1) * 2.0 - 1.0) / WIDTH**0.5

    asked = numbers(query[0], query.scale)
    expected = [sum(max(q @ d for d in numbers(each, documents.scale)) for q in asked) for each in documents]
    np.testing.assert_allclose(maxsim(query, documents), expected, atol=1e-4)


def test_a_limit_of_vectors(client: trimtab.Client) -> None:
    whole = embed(client, DOCUMENTS, "passage")
    for most in (1, 2, 10, 500):
        found = embed(client, DOCUMENTS, "passage", max_vectors=most)
        assert np.diff(found.offsets).tolist() == [min(most, len(rows)) for rows in whole]
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
        alone = embed(client, DOCUMENTS[1:2], "passage", max_vectors=most)
        np.testing.assert_allclose(alone[0], found[1], atol=1e-6)
    query = embed(client, [QUERIES[1]], "query")
    pooled = embed(client, DOCUMENTS, "passage", max_vectors=10)
    full, kept = maxsim(query, whole), maxsim(query, pooled)
    assert full.argmax() == kept.argmax() == 1


def test_dimensions_are_cut_and_rows_scaled(client: trimtab.Client) -> None:
    whole, cut = (embed(client, DOCUMENTS, "passage", dimensions=each) for each in (None, 5))
    expected = whole.vectors[:, :5] / np.linalg.norm(whole.vectors[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(cut.vectors, expected, atol=1e-6)


def test_remembered_candidates_need_no_text(client: trimtab.Client) -> None:
    texts = {f"d{number}": text for number, text in enumerate(DOCUMENTS)}
    asked: list[str] = []

    def texts_of(ids: list[str]) -> list[str]:
        asked.extend(ids)
        return [texts[each] for each in ids]

    expected = golden("plain").scores[1]
    for _ in range(2):
        scores = client.rescore(QUERIES[1], list(texts), texts=texts_of, encoder="plain")
        np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    assert asked == list(texts), "each once"


def test_candidates_are_scored_in_pieces(client: trimtab.Client) -> None:
    """More than a megabyte of vectors."""
    texts = [f"document number {number} " + "of many words " * 50 for number in range(30)]
    scores = client.rescore("document 7", texts, encoder="plain")
    vectors = embed(client, texts, "passage")
    query = embed(client, ["document 7"], "query")
    np.testing.assert_allclose(scores, maxsim(query, vectors), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"role": None}, trimtab.InvalidArgument, "embeds queries and passages differently: say which"),
        ({"dimensions": 17}, trimtab.InvalidArgument, "dimensions is 17, encoder plain has 16: ask for"),
        ({"dimensions": 12, "dtype": "ubinary"}, trimtab.InvalidArgument, "multiple of 8, not 12"),
        (
            {"role": "query", "max_vectors": 4},
            trimtab.InvalidArgument,
            "max_vectors is 4, and these are queries",
        ),
        (
            {"truncate": "none"},
            trimtab.InvalidArgument,
            r"texts\[1\] has 202 tokens.* reads 179 of a passage",
        ),
        (
            {"role": "query", "truncate": "none"},
            trimtab.InvalidArgument,
            r"texts\[1\] has 202 tokens.* reads 31 of a query: shorten",
        ),
    ],
)
def test_what_is_refused(
    client: trimtab.Client, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"encoder": "plain", "role": "passage", **options}
    with pytest.raises(error, match=message):
        client.embed_outputs(["a", "word " * 200], ["multi_vector"], **given)


def test_what_the_encoder_has_not(client: trimtab.Client) -> None:
    with pytest.raises(trimtab.InvalidArgument, match="no output 'dense'; it has multi_vector"):
        client.embed_outputs(["a"], ["dense"], encoder="plain", role="query")
    with pytest.raises(trimtab.FailedPrecondition, match=r"gives multi_vector \(multi_vector\), and embed"):
        client.embed(["a"], encoder="plain", role="query")
    with pytest.raises(trimtab.InvalidArgument, match="max_vectors is 0; give at least 1"):
        client.embed_outputs(["a"], ["multi_vector"], encoder="plain", role="passage", max_vectors=0)


def changed(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


SAID, DENSE = "config_sentence_transformers.json", "1_Dense/config.json"
REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("plain", lambda f: changed(f, SAID, similarity_fn_name="XTR"), "compares texts by XTR; only MaxSim"),
    ("plain", lambda f: changed(f, SAID, truncate_dim=8), "truncate_dim = 8"),
    ("plain", lambda f: changed(f, SAID, query_length="long"), "says how texts are read .*query_length"),
    ("plain", lambda f: changed(f, SAID, query_length=513), "513 tokens of a query, and has 512 positions"),
    ("plain", lambda f: changed(f, SAID, query_length=3), "3 tokens of a query, of which 3 are special"),
    ("plain", lambda f: changed(f, SAID, query_prefix="[X] "), r"no token '\[X\] '.*save_pretrained"),
    (
        "plain",
        lambda f: changed(f, SAID, skiplist_words=["[CLS]", "[SEP]", "[D] "]),
        "an empty passage would have no vector",
    ),
    ("plain", lambda f: changed(f, SAID, prompts={"passage": "p: "}), "declares the prompt passage"),
    ("plain", lambda f: changed(f, DENSE, use_residual=True), "1_Dense .*use_residual"),
    (
        "plain",
        lambda f: changed(f, DENSE, activation_function="pylate.Odd"),
        "activation function pylate.Odd",
    ),
    ("plain", lambda f: (f / DENSE).write_text("{}"), "has no 1_Dense/config.json, or nothing in it"),
    ("plain", lambda f: (f / "1_Dense" / "model.safetensors").unlink(), "no 1_Dense/model.safetensors"),
    (
        "plain",
        lambda f: (f / "modules.json").write_text(json.dumps([colbert_made.TRANSFORMER])),
        "the modules of .* are Transformer; a ColBERT encoder",
    ),
    (
        "plain",
        lambda f: (f / "modules.json").write_text(
            json.dumps([colbert_made.TRANSFORMER, {**colbert_made.DENSE, "type": "pylate.models.Odd"}])
        ),
        "module 1 of .* is pylate.models.Odd, which cannot be exported",
    ),
    ("stanford", lambda f: (f / "artifact.metadata").unlink(), "without artifact.metadata"),
    ("stanford", lambda f: changed(f, "artifact.metadata", similarity="l2"), "compares vectors by l2"),
    ("stanford", lambda f: changed(f, "artifact.metadata", mask_punctuation=False), "mask_punctuation"),
    (
        "stanford",
        lambda f: changed(f, "artifact.metadata", query_maxlen=0),
        "artifact.metadata .*query_maxlen",
    ),
]


@pytest.mark.parametrize(("kind", "change", "message"), REFUSED)
def test_what_cannot_be_exported(
    folders: Callable[[str], Path], tmp_path: Path, kind: str, change: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / kind
    shutil.copytree(folders(kind), folder, copy_function=linked)
    change(folder)
    with pytest.raises(ExportError, match=message):
        load(Settings(str(folder)))


def linked(source: str, target: str) -> None:
    """Weights as links, anything else as copies, which a test may change."""
    if source.endswith(".safetensors"):
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "a vector for each token: leave --pooling out"),
        ({"normalize": True}, "leave --normalize out"),
        ({"output": "x"}, "leave --output out"),
        ({"max_tokens": 513}, "513 tokens of a passage, and has 512 positions"),
    ],
)
def test_options_that_do_not_fit(
    folders: Callable[[str], Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        load(Settings(str(folders("plain")), **options))


def test_info_says_how_texts_are_read(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(repository / "plain" / "1")]) == 0
    said = capsys.readouterr().out
    assert "32 at most, marked with token 30522, filled up with token 103, not attended to" in said
    assert "180 at most, marked with token 30523, no vectors of 32 tokens" in said
    assert "multi_vector (multi_vector), 16 dimensions, cosine, length 1, space" in said
