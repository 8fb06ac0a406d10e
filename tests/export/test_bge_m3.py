"""Encoders in BGE-M3's form: three outputs of one pass, compared with a plain computation in torch."""

import asyncio
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import pytest
import tiny_encoders
import torch
import transformers
import tritonclient.grpc as triton

import trimtab
from tests.server.server_process import ServerProcess, serve
from trimtab.artifacts import bundle as bundles
from trimtab.errors import ExportError, InvalidArgument
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab.values.multi_vector import maxsim
from trimtab_export import sentences
from trimtab_export.export import export
from trimtab_export.graph import head
from trimtab_export.source import Settings

WIDTH = 24  # of a multi-vector
LENGTH = 60  # tokens that are read
TOLERANCE = 1e-4
OUTPUTS = ("dense", "sparse", "multi_vector")
SPECIAL = (0, 1, 2, 3)  # of the tokenizer: <s>, <pad>, </s>, <unk>
CONFIG = "sharing.cache_bytes = 1000000\n"
TEXTS = [
    "",
    "one",
    "a word and a word and a word again",
    "the end </s> is not the end, nor <s> the start",
    "a long text. " * 60,
    *sentences.load()[:24],
]


def make(folder: Path) -> Path:
    """A seeded encoder with both layers."""
    source = tiny_encoders.sentence_transformers("xlm-roberta", folder, pooling="cls", max_seq_length=LENGTH)
    generator = torch.Generator().manual_seed(5)
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", WIDTH)):
        weight = torch.randn(rows, 32, generator=generator) / 3
        torch.save({"weight": weight, "bias": torch.randn(rows, generator=generator) / 3}, source / name)
    return source


class Expected(NamedTuple):
    dense: np.ndarray
    sparse: dict[int, float]
    multi_vector: np.ndarray


def plain(source: Path, texts: list[str]) -> list[Expected]:
    """The three formulas of the paper, by transformers alone, one text at a time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModel.from_pretrained(source).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    weigh, project = (
        torch.load(source / name, weights_only=True) for name in ("sparse_linear.pt", "colbert_linear.pt")
    )
    found = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state[0]
        dense = states[0] / states[0].norm()
        scores = torch.relu(states @ weigh["weight"].T + weigh["bias"])[:, 0]
        sparse: dict[int, float] = {}
        for token, score in zip(tokens["input_ids"][0].tolist(), scores.tolist(), strict=True):
            if token not in SPECIAL and score > 0:
                sparse[token] = max(score, sparse.get(token, 0.0))
        rows = states[1:] @ project["weight"].T + project["bias"]
        found.append(Expected(dense.numpy(), sparse, (rows / rows.norm(dim=1, keepdim=True)).numpy()))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def repository(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    export(Settings(str(source)), "three", repository)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("served"), CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[trimtab.Client]:
    with trimtab.Client(server.url, timeout=100) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(source: Path) -> list[Expected]:
    return plain(source, TEXTS)


def check(given: trimtab.Outputs, expected: list[Expected]) -> None:
    """Each item of each output is its own text's."""
    assert tuple(given) == OUTPUTS
    dense, sparse, several = (given[name] for name in OUTPUTS)
    assert len(dense) == len(sparse) == len(several) == len(expected)
    for row, of in enumerate(expected):
        np.testing.assert_allclose(dense[row], of.dense, atol=TOLERANCE)
        indices, values = sparse[row]
        assert dict(zip(indices.tolist(), values.tolist(), strict=True)) == pytest.approx(
            of.sparse, abs=TOLERANCE
        )
        np.testing.assert_allclose(several[row], of.multi_vector, atol=TOLERANCE)


def test_what_the_manifest_says(repository: Path) -> None:
    manifest = bundles.read(repository / "three" / "1").manifest
    assert tuple(each.name for each in manifest.outputs) == OUTPUTS
    dense, sparse, several = manifest.outputs
    assert len({each.space for each in manifest.outputs}) == 3
    assert sparse.settings == {
        "activation": "relu", "pooling": "max", "per_token": True, "stop_tokens": [*SPECIAL],
    }  # fmt: skip
    assert (several.dimensions, several.similarity, several.normalized) == (WIDTH, "cosine", True)
    assert dense.int8_limit and several.int8_limit and sparse.int8_limit is None
    assert manifest.variants[0].unpadded


def test_one_call_gives_all_three(client: trimtab.Client, expected: list[Expected]) -> None:
    assert sum(len(each.sparse) for each in expected) > 100
    check(client.embed_outputs(TEXTS, OUTPUTS), expected)


def test_a_text_alone_is_as_in_a_batch(client: trimtab.Client, expected: list[Expected]) -> None:
    for text, of in zip(TEXTS[:8], expected, strict=False):
        check(client.embed_outputs([text], OUTPUTS), [of])
    check(client.embed_outputs(TEXTS[::-1], OUTPUTS), expected[::-1])


def test_texts_without_any_weight(client: trimtab.Client, source: Path) -> None:
    """The graph has nothing to sort then."""
    texts = ["", ""]
    check(client.embed_outputs(texts, OUTPUTS), plain(source, texts))
    assert len(client.embed_outputs([""], ["sparse"])["sparse"].indices) == 0


def test_the_async_client_in_other_dtypes(server: ServerProcess, expected: list[Expected]) -> None:
    async def ask() -> trimtab.Outputs:
        async with trimtab.AsyncClient(server.url, timeout=100) as opened:
            return await opened.embed_outputs(TEXTS, OUTPUTS, dtype="float16")

    given = asyncio.run(ask())
    for name in OUTPUTS:
        values = {"dense": lambda each: each, "sparse": lambda each: each.values}.get(
            name, lambda each: each.vectors
        )
        assert values(given[name]).dtype == np.float16
    np.testing.assert_allclose(given["dense"], [each.dense for each in expected], atol=1e-3)


def test_each_output_scores_candidates(
    client: trimtab.Client, server: ServerProcess, expected: list[Expected]
) -> None:
    """By cosine, by the products of equal tokens' weights, by MaxSim."""
    query, *documents = TEXTS[5:15]
    asked, *found = expected[5:15]
    given = client.embed_outputs([query, *documents], OUTPUTS)
    of_tokens = maxsim(given["multi_vector"].only(0), given["multi_vector"])[1:]
    by_hand: dict[str, list[float]] = {
        "dense": [float(asked.dense @ each.dense) for each in found],
        "sparse": [
            sum(weight * each.sparse.get(token, 0.0) for token, weight in asked.sparse.items())
            for each in found
        ],
        "multi_vector": [float((asked.multi_vector @ each.multi_vector.T).max(1).sum()) for each in found],
    }
    np.testing.assert_allclose(of_tokens, by_hand["multi_vector"], atol=1e-3)
    with grpc.insecure_channel(server.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for name, scores in by_hand.items():
            candidates = [pb.Candidate(text=text) for text in documents]
            response = stub.Rescore(pb.RescoreRequest(query=query, candidates=candidates, output=name))
            np.testing.assert_allclose(np.frombuffer(response.scores, "<f4"), scores, atol=1e-3)


def test_tritonclient_asks_for_all_three(server: ServerProcess, expected: list[Expected]) -> None:
    names = [
        "embeddings", "sparse_indices", "sparse_values", "sparse_offsets", "token_vectors", "token_offsets",
    ]  # fmt: skip
    texts = triton.InferInput("text", [len(TEXTS), 1], "BYTES")
    texts.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], object))
    with triton.InferenceServerClient(server.url) as client:
        answer = client.infer("three", [texts], outputs=[triton.InferRequestedOutput(name) for name in names])
    dense, indices, values, offsets, vectors, starts = (answer.as_numpy(name) for name in names)
    np.testing.assert_allclose(dense, [each.dense for each in expected], atol=TOLERANCE)
    for row, of in enumerate(expected):
        part = slice(offsets[row], offsets[row + 1])
        assert dict(zip(indices[part].tolist(), values[part].tolist(), strict=True)) == pytest.approx(
            of.sparse, abs=TOLERANCE
        )
        np.testing.assert_allclose(vectors[starts[row] : starts[row + 1]], of.multi_vector, atol=TOLERANCE)


def test_an_output_that_it_has_not(client: trimtab.Client) -> None:
    with pytest.raises(InvalidArgument, match="dense, sparse, multi_vector"):
        client.embed_outputs(["a text"], ["scores"])


class Code:
    """What a pickle may hold."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("this ran",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sparse_linear.pt", Code(), "cannot be read as tensors"),
        ("colbert_linear.pt", {"weight": torch.ones(4, 9)}, r"has a weight of the shape \(4, 9\)"),
        ("sparse_linear.pt", {"weight": torch.ones(2, 32)}, "gives 2 numbers a token; one is needed"),
        ("colbert_linear.pt", {"weight": torch.full((4, 32), torch.nan)}, "holds NaN or infinity"),
        ("colbert_linear.pt", {"kernel": torch.ones(4, 32)}, "is no linear layer"),
        ("colbert_linear.pt", {"weight": torch.ones(0, 32)}, r"has a weight of the shape \(0, 32\)"),
        ("sparse_linear.pt", {"weight": torch.ones(1, 32), "bias": 3}, "other than numbers with a fraction"),
        ("sparse_linear.pt", {"weight": torch.ones(1, 32, dtype=torch.complex64)}, "other than numbers"),
        (
            "sparse_linear.pt",
            {"weight": torch.zeros(1, 32), "bias": torch.full((1,), -1.0)},
            "the sparse output is 0 for every text of the comparison",
        ),
        ("colbert_linear.pt", None, "has no colbert_linear.pt"),
    ],
)
def test_layers_that_cannot_be_read(
    name: str, content: object, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path / "source")
    (source / name).unlink()
    if content is not None:
        torch.save(content, source / name)
    with pytest.raises(ExportError, match=message):
        export(Settings(str(source)), "broken", tmp_path / "repository")
    assert "this ran" not in capfd.readouterr().out


def test_small_weights_are_compared_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is wrong by half is refused, however small its numbers are."""
    source = make(tmp_path / "source")
    state = torch.load(source / "sparse_linear.pt", weights_only=True)
    torch.save({name: tensor * 1e-5 for name, tensor in state.items()}, source / "sparse_linear.pt")
    export(Settings(str(source)), "small", tmp_path / "repository")
    scores = head.Grafter.token_scores
    monkeypatch.setattr(
        head.Grafter,
        "token_scores",
        lambda self, states, layer: self.node(
            "Mul", scores(self, states, layer), self.constant(np.float32(1.5))
        ),
    )
    with pytest.raises(ExportError, match="the graph's sparse output differs from the source's"):
        export(Settings(str(source)), "wrong", tmp_path / "repository")
