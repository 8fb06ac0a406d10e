"""Cross-encoders: exported, served over gRPC, ranked by both clients; as sentence-transformers has it."""

# ruff: noqa: E501 (tables)

import asyncio
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
import tiny_encoders
import tiny_rerankers
import torch
import tritonclient.grpc as triton
import tritonclient.utils
from hypothesis import given, settings
from hypothesis import strategies as st
from optimum.exporters.onnx import onnx_export_from_model

import trimtab
from tests.server.server_process import ServerProcess, serve
from tests.texts import LANGUAGES, TEXTS
from trimtab.artifacts import bundle as bundles
from trimtab.cli import main
from trimtab.errors import ExportError
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab_export.export import export
from trimtab_export.source import Settings

TOLERANCE = 1e-5
QUERY = "how to get a deleted file back"
LABELS = {0: "contradiction", 1: "entailment", 2: "neutral"}
CONFIG = "limits.max_texts = 64\nlimits.max_text_bytes = 65536\nsharing.cache_bytes = 0\n"
LONG = " ".join(TEXTS[:25])
PAIRS = [
    *zip(LANGUAGES, LANGUAGES[1:] + LANGUAGES[:1], strict=True),
    *((QUERY, text) for text in TEXTS[:20]),
    (QUERY, LONG), (LONG, QUERY), (LONG, LONG[100:]), ("", ""), ("a", ""), ("", "a"), (LONG[:300], LONG[300:600]),
]  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of cross-encoders, by the names that they are served under."""
    make = lambda name: tmp_path_factory.mktemp(name)  # noqa: E731
    found = {name: tiny_rerankers.cross_encoder(name, make(name)) for name in tiny_rerankers.CLASSES}
    found["plain"] = tiny_rerankers.huggingface("bert", make("plain"))
    found["nli"] = tiny_rerankers.huggingface("bert", make("nli"), 3, id2label=LABELS)
    found["softmax"] = tiny_rerankers.cross_encoder(
        "roberta", make("softmax"), 3, torch.nn.Softmax(dim=1), id2label=LABELS
    )
    found["identity"] = tiny_rerankers.cross_encoder("bert", make("identity"), 1, torch.nn.Identity())
    return found


@pytest.fixture(scope="module")
def repository(sources: dict[str, Path], st_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, and `words`, an encoder of texts."""
    folder = tmp_path_factory.mktemp("repository")
    for name, source in sources.items():
        export(Settings(str(source)), name, folder)
    export(Settings(str(st_bert)), "words", folder)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("served"), CONFIG) as running:
        yield running


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[encoder_pb2_grpc.EncoderServiceStub]:
    with grpc.insecure_channel(server.url) as channel:
        yield encoder_pb2_grpc.EncoderServiceStub(channel)


def embed(encoder: str, pairs: Sequence[tuple[str, str]], **fields: object) -> pb.EmbedRequest:
    inputs = [pb.Input(pair=pb.Pair(first=first, second=second)) for first, second in pairs]
    return pb.EmbedRequest(encoder=encoder, inputs=inputs, **fields)  # type: ignore[arg-type]


def matrix(output: pb.Output) -> np.ndarray:
    message = output.scores
    dtype = {pb.DATA_TYPE_FLOAT32: "<f4", pb.DATA_TYPE_FLOAT16: "<f2"}[message.dtype]
    return np.frombuffer(message.data, dtype).reshape(message.rows, message.columns)


def expected(source: Path, pairs: Sequence[tuple[str, str]], activation: object = None) -> np.ndarray:
    lengths = {each: most for each, most in tiny_rerankers.LENGTHS.items() if each in str(source)}
    return tiny_rerankers.predict(source, list(pairs), activation, next(iter(lengths.values()), None))


@pytest.mark.parametrize("name", [*tiny_rerankers.CLASSES, "plain", "nli", "softmax", "identity"])
def test_scores_are_the_librarys_own(
    stub: encoder_pb2_grpc.EncoderServiceStub, sources: dict[str, Path], name: str
) -> None:
    for start in range(0, len(PAIRS), 20):
        part = PAIRS[start : start + 20]
        (found,) = stub.Embed(embed(name, part)).outputs
        assert (found.name, found.kind) == ("scores", "scores")
        truth = expected(sources[name], part)
        np.testing.assert_allclose(matrix(found), truth, atol=TOLERANCE)
    assert np.ptp(truth, axis=0).min() > 100 * TOLERANCE, "scores that are all alike would show nothing"


def test_logits_are_another_output_of_the_same_pass(
    stub: encoder_pb2_grpc.EncoderServiceStub, sources: dict[str, Path]
) -> None:
    scores, logits = stub.Embed(embed("bert", PAIRS[:9], outputs=["scores", "logits"])).outputs
    truth = expected(sources["bert"], PAIRS[:9], torch.nn.Identity())
    np.testing.assert_allclose(matrix(logits), truth, atol=TOLERANCE)
    np.testing.assert_allclose(matrix(scores), 1 / (1 + np.exp(-truth)), atol=TOLERANCE)
    assert scores.space != logits.space
    (half,) = stub.Embed(embed("bert", PAIRS[:9], outputs=["logits"], dtype=pb.DATA_TYPE_FLOAT16)).outputs
    assert half.scores.dtype == pb.DATA_TYPE_FLOAT16
    np.testing.assert_allclose(matrix(half), truth, rtol=2e-3)


def test_what_the_exporter_writes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, activations, labels in (
        ("bert", ["sigmoid", "identity"], ["LABEL_0"]),
        ("plain", ["sigmoid", "identity"], ["LABEL_0"]),
        ("nli", ["identity"], list(LABELS.values())),
        ("softmax", ["softmax", "identity"], list(LABELS.values())),
        ("identity", ["identity"], ["LABEL_0"]),
    ):
        manifest = bundles.read(repository / name / "1").manifest
        assert [each.settings["activation"] for each in manifest.outputs] == activations
        assert [each.name for each in manifest.outputs] == ["scores", "logits"][: len(activations)]
        assert all(each.settings["labels"] == labels for each in manifest.outputs)
        assert (manifest.input.kind, manifest.variants[0].unpadded) == ("pair", True)
        assert manifest.variants[0].report.parity.max_abs_diff < TOLERANCE
    assert main(["info", str(repository / "nli" / "1")]) == 0
    said = capsys.readouterr().out
    assert "pair (pair), 130 tokens of one" in said
    assert "scores (scores), identity of contradiction, entailment, neutral, space" in said


def test_it_is_described(server: ServerProcess, stub: encoder_pb2_grpc.EncoderServiceStub) -> None:
    described = stub.GetEncoder(pb.GetEncoderRequest(encoder="softmax"))
    (given,) = described.inputs
    assert (given.kind, given.form, given.max_units) == ("pair", "pair", 128)
    assert [(each.form, each.dimensions, each.similarity) for each in described.outputs] == [
        ("scores", 3, "cross-encoder")
    ] * 2
    with trimtab.Client(server.url) as client:
        assert client.encoder("softmax").outputs[0].labels == tuple(LABELS.values())
        assert client.encoder("words").outputs[0].labels == ()


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_alone_as_in_a_batch_in_any_order(
    repository: Path, server: ServerProcess, data: st.DataObject
) -> None:
    pairs = data.draw(st.lists(st.sampled_from(PAIRS), min_size=2, max_size=20))
    order = data.draw(st.permutations(range(len(pairs))))
    with grpc.insecure_channel(server.url) as channel:
        ask = encoder_pb2_grpc.EncoderServiceStub(channel).Embed
        together = matrix(ask(embed("bert", pairs, outputs=["logits"])).outputs[0])
        turned = matrix(ask(embed("bert", [pairs[n] for n in order], outputs=["logits"])).outputs[0])
        np.testing.assert_allclose(turned, together[list(order)], atol=1e-6)
        alone = matrix(ask(embed("bert", pairs[:1], outputs=["logits"])).outputs[0])
        np.testing.assert_allclose(alone, together[:1], atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "identity"])
async def test_both_clients_rank_as_the_library_scores(
    server: ServerProcess, sources: dict[str, Path], name: str
) -> None:
    texts = [*TEXTS[:30], LONG]
    truth = expected(sources[name], [(QUERY, text) for text in texts])[:, 0]
    order = np.argsort(-truth, kind="stable")
    with trimtab.Client(server.url, timeout=100) as client:
        ranking = client.rerank(QUERY, texts, encoder=name)
    async with trimtab.AsyncClient(server.url, timeout=100) as client:
        same = await client.rerank(QUERY, iter(texts), encoder=name, top_n=5)
    np.testing.assert_allclose(ranking.scores, truth[order], atol=TOLERANCE)
    np.testing.assert_allclose(truth[ranking.indices], truth[order], atol=TOLERANCE)
    assert (np.diff(ranking.scores) <= 0).all() and sorted(ranking.indices) == list(range(len(texts)))
    assert (ranking.encoder, ranking.version, ranking.similarity) == (name, "1", "cross-encoder")
    assert ranking.complete and ranking.scored == same.scored == len(texts)
    assert list(same.indices) == list(ranking.indices[:5]) and len(same) == 5
    (index, score), hit = ranking[0], ranking[0]
    assert (index, score) == (hit.index, hit.score) == (ranking.indices[0], ranking.scores[0])
    assert [each.index for each in ranking[:3]] == list(ranking.indices[:3])


@pytest.mark.parametrize("count", [5, 130])
async def test_both_clients_send_pairs(server: ServerProcess, sources: dict[str, Path], count: int) -> None:
    pairs = [PAIRS[number % len(PAIRS)] for number in range(count)]
    truth = expected(sources["nli"], PAIRS[:count])
    with trimtab.Client(server.url, timeout=100) as client:
        found = client.embed_outputs(pairs, ["scores"], encoder="nli")
        for bad, message in (
            (["a", ("a", "b")], "texts.1. is tuple, not str"),
            ([("a", "b"), "a"], "texts.1. is str; pass texts, or pairs of two str"),
            ([("a", "b", "c")], "texts.0. is tuple"),
            ([("a", 3)], "texts.0. is tuple"),
            ([("a", "b" * 5_000_000)], "texts.0. has 5,000,000 bytes, and a message"),
        ):
            with pytest.raises(trimtab.InvalidArgument, match=message):
                client.embed_outputs(bad, ["scores"], encoder="nli")  # type: ignore[arg-type]
    assert found["scores"].shape == (count, 3) and found.forms == {"scores": "scores"}
    np.testing.assert_allclose(found["scores"][: len(truth)], truth, atol=TOLERANCE)
    async with trimtab.AsyncClient(server.url, timeout=100) as client:
        same = await client.embed_outputs(iter(pairs), ["scores"], encoder="nli", dtype="float16")
    np.testing.assert_allclose(same["scores"], found["scores"], rtol=2e-3)


def test_more_candidates_than_a_request_holds(server: ServerProcess, sources: dict[str, Path]) -> None:
    texts = [f"{text} {number}" for number in range(10) for text in LANGUAGES]
    with trimtab.Client(server.url, timeout=100) as client:
        ranking = client.rerank(QUERY, texts, encoder="bert", output="logits", top_n=50)
        partial = client.rerank(QUERY, texts, encoder="bert", output="logits", partial=True)
    truth = expected(sources["bert"], [(QUERY, text) for text in texts], torch.nn.Identity())[:, 0]
    np.testing.assert_allclose(truth[ranking.indices], np.sort(truth)[::-1][:50], atol=TOLERANCE)
    assert (ranking.scored, len(ranking), partial.complete, len(partial)) == (180, 50, True, 180)


def test_an_encoder_of_texts_ranks_by_its_vectors(server: ServerProcess) -> None:
    with trimtab.Client(server.url, timeout=100) as client:
        ranking = client.rerank(QUERY, TEXTS[:20], encoder="words")
        scores = client.rescore(QUERY, TEXTS[:20], encoder="words")
    np.testing.assert_allclose(ranking.scores, scores[ranking.indices])
    assert ranking.similarity == "cosine"


def test_scores_are_remembered_by_query_and_id(server: ServerProcess, sources: dict[str, Path]) -> None:
    texts = dict(zip("abcde", TEXTS[:5], strict=True))
    count = 'trimtab_texts_total{encoder="bert",protocol="rescore",version="1"}'
    with trimtab.Client(server.url, timeout=100) as client:
        first = client.rescore("one query", list(texts), texts=texts, encoder="bert")
        before = server.metrics()[count]
        again = client.rescore("one query", list(texts), texts=lambda ids: [], encoder="bert")
        assert server.metrics()[count] == before, "nothing was computed"
        np.testing.assert_array_equal(first, again)
        other = client.rescore("another query", list(texts), texts=texts, encoder="bert")
        assert server.metrics()[count] == before + len(texts)
        truth = expected(sources["bert"], [("another query", text) for text in texts.values()])[:, 0]
        np.testing.assert_allclose(other, truth, atol=TOLERANCE)
        changed = {**texts, "b": "another text altogether"}
        scores = client.rescore("one query", list(changed), texts=changed, encoder="bert")
        assert (scores != first).nonzero()[0].tolist() == [1]


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (pb.EmbedRequest(encoder="bert", texts=["a"]), 3, "bert reads pair, and texts.0. is text: to score .*Rescore"),
        (embed("words", [("a", "b")]), 3, "words reads text, and inputs.0. is pair: .* name a reranker"),
        (embed("bert", []), 3, "has no texts"),
        (embed("bert", [("a", "b")], dtype=pb.DATA_TYPE_INT8), 3, "dtype is int8, .*float32 or float16"),
        (embed("bert", [("a", "b")], dtype=pb.DATA_TYPE_UBINARY), 3, "dtype is ubinary"),
        (embed("bert", [("a", "b")], dimensions=1), 3, "dimensions is 1, .* leave dimensions out"),
        (embed("bert", [("a", "b")], outputs=["dense"]), 3, "no output 'dense'; it has scores, logits"),
        (embed("bert", [("a", "b"), ("a", "b " * 300)], truncate=pb.TRUNCATE_NONE), 3,
         r"inputs\[1\] has 304 tokens.* reads 130: shorten it"),
        (embed("bert", [("a", "b"), ("x" * 70_000, "")]), 3, r"inputs\[1\] has 70000 bytes, .* 65536"),
        (embed("bert", [("a", "b")] * 65), 3, "has 65 inputs, this server takes 64"),
    ],
)  # fmt: skip
def test_what_a_reranker_does_not_read_or_give(
    stub: encoder_pb2_grpc.EncoderServiceStub, request_: pb.EmbedRequest, code: int, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Embed(request_)
    assert caught.value.code().value[0] == code
    assert re.search(message, caught.value.details()), caught.value.details()


def rescore(encoder: str, query: str, *texts: str, **fields: object) -> pb.RescoreRequest:
    candidates = [pb.Candidate(text=text) for text in texts]
    return pb.RescoreRequest(encoder=encoder, query=query, candidates=candidates, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (rescore("bert", "", "a"), 3, "the query is empty, and encoder bert reads it with each candidate"),
        (rescore("bert", "a"), 3, "has no candidates"),
        (rescore("nli", "a", "b"), 12, "nli gives scores of 3 labels, and candidates are ranked by one"),
        (rescore("bert", "x" * 70_000, "a"), 3, "query[0] has 70000 bytes"),
        (rescore("bert", "a", "b", "x" * 70_000), 3, "candidates[1] has 70000 bytes"),
        (rescore("bert", "a", "b", "c " * 300, truncate=pb.TRUNCATE_NONE), 3, "candidates[1] has 304 tokens"),
        (rescore("bert", "a", *["b"] * 65), 3, "the request has 65 candidates, this server takes 64"),
        (rescore("bert", "a", "b", output="dense"), 3, "no output 'dense'; it has scores, logits"),
    ],
)
def test_what_cannot_be_rescored(
    stub: encoder_pb2_grpc.EncoderServiceStub, request_: pb.RescoreRequest, code: int, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Rescore(request_)
    assert caught.value.code().value[0] == code
    assert message in caught.value.details()


def test_what_the_client_refuses_to_rank(server: ServerProcess) -> None:
    with trimtab.Client(server.url, timeout=100) as client:
        for arguments, options, message in (
            ((QUERY, ["a"]), {"top_n": 0}, "top_n is 0; pass 1 or more"),
            ((QUERY, ["a"]), {"top_n": True}, "top_n is True"),
            ((" ", ["a"]), {}, "query is empty"),
            ((3, ["a"]), {}, "query is int, not str"),
            ((QUERY, "a"), {}, "texts is one str"),
            ((QUERY, ["a", 3]), {}, "texts.1. is int, not str"),
        ):
            with pytest.raises(trimtab.InvalidArgument, match=message):
                client.rerank(*arguments, encoder="bert", **options)
        with pytest.raises(trimtab.Unimplemented, match="3 labels"):
            client.rerank(QUERY, ["a"], encoder="nli")
        none = client.rerank(QUERY, [], encoder="bert")
        assert (list(none), none.encoder, none.version, none.complete) == ([], "bert", "1", True)


@pytest.mark.parametrize("options", [{"truncate": "start"}, {}])
def test_truncation_is_the_librarys(
    stub: encoder_pb2_grpc.EncoderServiceStub, sources: dict[str, Path], options: dict[str, str]
) -> None:
    """Of both texts, whichever is longer, from either side."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(sources["bert"]), device="cpu")
    model.tokenizer.truncation_side = "left" if options else "right"
    words = LONG.split()
    pairs = [(" ".join(words[:a]), " ".join(words[-b:])) for a in (3, 30, 60, 200) for b in (4, 30, 61, 200)]
    truth = model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    cut = {"truncate": pb.TRUNCATE_START} if options else {}
    (found,) = stub.Embed(embed("bert", pairs, outputs=["logits"], **cut)).outputs
    np.testing.assert_allclose(matrix(found)[:, 0], truth, atol=TOLERANCE)


def graph_folder(source: Path, folder: Path) -> Path:
    """A folder of a graph with `logits`, as optimum writes it, and what stands beside it."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_export_from_model(model.eval(), output=folder, task="text-classification", do_validation=False)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder)
    return folder


def test_a_graph_of_a_classifier(sources: dict[str, Path], tmp_path: Path) -> None:
    folder = graph_folder(sources["nli"], tmp_path / "graph")
    for source in (folder, folder / "model.onnx"):
        bundle = export(Settings(str(source)), "graph", tmp_path / "repository")
        assert [each.settings for each in bundle.manifest.outputs] == [
            {"labels": list(LABELS.values()), "activation": "identity"}
        ]
        assert bundle.manifest.variants[0].report.parity.max_abs_diff < TOLERANCE


def test_the_space_follows_from_what_the_scores_mean(
    repository: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(sources["plain"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "id2label": {"0": "relevant"}}))
    named = export(Settings(str(other)), "named", tmp_path / "repository").manifest
    plain, st_folder = (bundles.read(repository / name / "1").manifest for name in ("plain", "bert"))
    assert plain.space == st_folder.space, "the same weights, declared by either library"
    assert named.space != plain.space and named.output.settings["labels"] == ["relevant"]


def change(folder: Path, name: str, **values: object) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **values}))


BESIDE = "config_sentence_transformers.json"
SCORE = {
    "idx": 1,
    "name": "1",
    "path": "1_LogitScore",
    "type": "sentence_transformers.cross_encoder.modules.LogitScore",
}


@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        (lambda f: change(f, BESIDE, activation_fn="theirs.Odd"), {}, "activation function theirs.Odd; these of torch.nn"),
        (lambda f: change(f, BESIDE, activation_fn="torch.nn.ReLU"), {}, "torch.nn.ReLU; .* Sigmoid, Softmax, Identity"),
        (lambda f: change(f, BESIDE, prompts={"q": "ask: "}, default_prompt_name="q"), {}, "puts 'ask: ' before every"),
        (lambda f: (f / "modules.json").write_text(json.dumps([*json.loads((f / "modules.json").read_text()), SCORE])),
         {}, "are Transformer, LogitScore; .* language model. An ONNX graph"),
        (lambda f: change(f, "config.json", architectures=["BertForCausalLM"]), {}, "CrossEncoder of BertForCausalLM"),
        (lambda f: change(f, "config.json", id2label={"1": "a"}, num_labels=None), {}, "id2label in config.json"),
        (lambda f: change(f, "config.json", auto_map={"AutoModel": "x.y"}), {}, "names code of its own"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), {}, "ForSequenceClassification.from_pretr"),
        (lambda f: None, {"pooling": "mean"}, "a cross-encoder, which reads pairs and gives scores: leave --pooling out"),
        (lambda f: None, {"normalize": True}, "leave --normalize out"),
        (lambda f: None, {"query_prompt": "q"}, "leave --query-prompt out"),
        (lambda f: None, {"reads": "text"}, "leave --reads out"),
        (lambda f: None, {"max_tokens": 3}, "none of the text would be read"),
        (lambda f: None, {"max_tokens": 4}, "adds 3 special tokens to a pair, and the encoder reads 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported(
    sources: dict[str, Path], tmp_path: Path, edit: object, options: dict[str, object], message: str
) -> None:
    folder = tmp_path / "source"
    shutil.copytree(sources["bert"], folder)
    edit(folder)  # type: ignore[operator]
    with pytest.raises(ExportError, match=message):
        export(Settings(str(folder), **options), "odd", tmp_path / "repository")  # type: ignore[arg-type]
    assert not list((tmp_path / "repository").glob("odd/*"))


def test_a_checkpoint_without_its_classifier_is_refused(tmp_path: Path) -> None:
    folder = tiny_encoders.huggingface("bert", tmp_path / "bert")
    change(folder, "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(
        ExportError, match=r"lacks .* weights of BertForSequenceClassification, first classifier"
    ):
        export(Settings(str(folder)), "odd", tmp_path / "repository")


async def test_pairs_of_many_callers(server: ServerProcess, sources: dict[str, Path]) -> None:
    """Batched together, and each answered with its own."""
    texts = TEXTS[:16]
    queries = [f"{text} {number}" for number, text in enumerate(LANGUAGES[:12])]
    async with trimtab.AsyncClient(server.url, timeout=200) as client:
        found = await asyncio.gather(
            *(client.rescore(query, texts, encoder="distilbert") for query in queries)
        )
    for query, scores in zip(queries, found, strict=True):
        truth = expected(sources["distilbert"], [(query, text) for text in texts])[:, 0]
        np.testing.assert_allclose(scores, truth, atol=TOLERANCE)


def tensor(name: str, texts: Sequence[str], *, flat: bool = False) -> triton.InferInput:
    array = np.array([text.encode() for text in texts], object)
    made = triton.InferInput(name, array.shape if flat else (len(texts), 1), "BYTES")
    made.set_data_from_numpy(array if flat else array[:, None])
    return made


def test_an_unchanged_tritonclient_sends_pairs(server: ServerProcess, sources: dict[str, Path]) -> None:
    queries, texts = (list(each) for each in zip(*PAIRS[:12], strict=True))
    with triton.InferenceServerClient(server.url) as client:
        metadata = client.get_model_metadata("softmax")
        assert [(each.name, list(each.shape)) for each in metadata.inputs] == [
            ("query", [-1, 1]),
            ("text", [-1, 1]),
        ]
        assert [(each.name, list(each.shape)) for each in metadata.outputs] == [
            ("scores", [-1, 3]), ("logits", [-1, 3]), ("token_count", [-1, 1]),
        ]  # fmt: skip
        config = client.get_model_config("softmax").config
        assert [each.name for each in config.input] == ["query", "text"]
        result = client.infer("softmax", [tensor("query", queries), tensor("text", texts)])
        np.testing.assert_allclose(
            result.as_numpy("scores"), expected(sources["softmax"], PAIRS[:12]), atol=TOLERANCE
        )
        assert result.as_numpy("logits") is None
        wanted = [triton.InferRequestedOutput(name) for name in ("logits", "token_count")]
        one = [tensor("text", texts, flat=True), tensor("query", [QUERY], flat=True)]
        result = client.infer("bert", one, outputs=wanted)
        truth = expected(sources["bert"], [(QUERY, text) for text in texts], torch.nn.Identity())
        np.testing.assert_allclose(result.as_numpy("logits"), truth, atol=TOLERANCE)
        assert result.as_numpy("scores") is None and result.as_numpy("token_count").shape == (12, 1)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("bert", [("text", ["a"])], "bert reads pair, and texts.0. is text: .*the tensors query and text"),
        ("words", [("query", ["a"]), ("text", ["b"])], "words reads text, and texts.0. is pair"),
        (
            "bert",
            [("query", ["a", "b"]), ("text", ["a", "b", "c"])],
            "'query' has 2 elements, and 'text' has 3",
        ),
        (
            "bert",
            [("query", ["a"]), ("passage", ["b"])],
            "has 2 inputs .'query', 'passage'.; .* 'query' and 'text'",
        ),
        ("bert", [("query", ["a"])], "has 1 inputs .'query'."),
        ("bert", [("query", ["a"]), ("text", ["a"] * 65)], "has 65 texts, this server takes 64"),
    ],
)
def test_what_a_tritonclient_is_refused(
    server: ServerProcess, name: str, inputs: list[tuple[str, list[str]]], message: str
) -> None:
    with triton.InferenceServerClient(server.url) as client:
        with pytest.raises(tritonclient.utils.InferenceServerException, match=message):
            client.infer(name, [tensor(*each) for each in inputs])
