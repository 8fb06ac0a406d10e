"""A bundle with variants, made in a moment: seeded graphs, and report cards that say what a test wants."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import tokenizers
from onnx import TensorProto, helper, numpy_helper

from tests import manifests_made
from trimtab.artifacts import (
    artifact,
    cards,
    variants,
)
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.artifact import File
from trimtab.artifacts.bundle import Bundle
from trimtab.artifacts.manifest import BundleVariant, Passes, SpaceParts, States
from trimtab.kinds import JudgedBy

NAME = "layered"
LAYERS = 8
WIDTH = 512  # of the layers: so wide that a few hundred texts keep a core busy for a while
DIMENSIONS = 32
TOKENS = 48
WORDS = [f"w{number}" for number in range(200)]
TEXTS = [" ".join(WORDS[(7 * n + k * k) % 200] for k in range(1 + n % 30)) for n in range(40)]


def bundle(repository: Path, *, version: int = 1, small: float = 0.98, early: float = 0.4) -> Bundle:
    """REPOSITORY/layered/VERSION: fp32 (8 layers), small (2), early (4), early-16 (4, 16 dimensions).

    `small` and `early` are what the report cards say of queries alone in the index of the first; that of
    early-16 was judged by what trained it.
    """
    folder = repository / NAME / str(version)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(version)
    table = rng.normal(size=(len(WORDS) + 3, WIDTH)).astype(np.float32)
    layer = (rng.normal(size=(WIDTH, WIDTH)) * 1.5 / WIDTH**0.5).astype(np.float32)
    head = rng.normal(size=(WIDTH, DIMENSIONS)).astype(np.float32)
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A", None, [("[CLS]", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    text = manifests_made.text(_entry(folder, folder / "tokenizer.json"), TOKENS)
    parts = SpaceParts(weights_sha256=f"{version:064x}", structure={"layers": LAYERS})
    output = manifests_made.dense(text, parts, DIMENSIONS)

    def variant(
        name: str,
        layers: int,
        dimensions: int,
        quality: float,
        kind: JudgedBy = "left out",
        int8_limit: float | None = None,
    ) -> BundleVariant:
        path = folder / name / "model.onnx"
        path.parent.mkdir()
        onnx.save(graph(table, layer, head[:, :dimensions], layers), path)
        files = (_entry(folder, path),)
        return BundleVariant(
            name=name, precision="fp32", inputs=("input_ids", "attention_mask"), unpadded=False, files=files,
            tensors=manifests_made.TENSORS, report=card(quality, kind), passes=Passes(name=name, exit=layers),
            moved=manifests_made.moved(
                output, files, dimensions=dimensions if dimensions < DIMENSIONS else None,
                int8_limit=int8_limit,
            ),
        )  # fmt: skip

    first = variant("fp32", LAYERS, DIMENSIONS, 1.0)
    with_states = folder / "fp32" / "model-with-states.onnx"
    onnx.save(graph(table, layer, head, LAYERS, states=True), with_states)
    states = States(file=_entry(folder, with_states), layers=LAYERS + 1, width=WIDTH * (LAYERS + 1))
    first = msgspec.structs.replace(
        first, report=msgspec.structs.replace(first.report, fidelity=None), moved=(), passes=None,
        states=states,
    )  # fmt: skip
    manifest = manifests_made.manifest(
        NAME, version, text, output,
        (
            first, variant("small", 2, DIMENSIONS, small, int8_limit=0.7),
            variant("early", 4, DIMENSIONS, early),
            variant("early-16", 4, 16, early, "trained on"),
        ),
    )  # fmt: skip
    (folder / bundles.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return bundles.read(folder)


def card(quality: float, kind: JudgedBy = "left out") -> cards.ReportCard:
    """A report card that says so of queries alone, and less of nothing else."""
    kept = artifact.Interval(value=quality, low=quality - 0.01, high=quality + 0.01)
    own = artifact.Interval(value=0.99, low=0.98, high=1.0)
    return cards.ReportCard(
        parity=cards.Parity(texts=1, max_abs_diff=0.0, min_cosine=1.0, batch_max_abs_diff=0.0),
        speed=(), machine="none",
        fidelity=cards.Fidelity(
            retrieval="made", queries=40, documents=60, source_ndcg=0.5, source_recall=0.6, ndcg=own,
            recall=own, query_only_ndcg=kept, query_only_recall=kept, cosine=0.9, min_cosine=0.8,
            batch_min_cosine=1.0,
            speedup=(cards.Speedup(batch=8, length=16, factor=2.5),), bytes=1234,
            sets=(
                cards.Kept(
                    name="made", kind=kind, languages=("en",), queries=40, documents=60, source_ndcg=0.5,
                    ndcg=own, query_only_ndcg=kept,
                ),
            ),
        ),
    )  # fmt: skip


def graph(
    table: np.ndarray, layer: np.ndarray, head: np.ndarray, layers: int, *, states: bool = False
) -> onnx.ModelProto:
    """Word vectors through so many layers, the sum over a text's tokens, the head, length 1.

    With `states`, the mean of every layer's hidden states stands behind the embedding.
    """
    names = ("input_ids", "attention_mask")
    ids, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "l"]) for name in names)
    constants = {"table": table, "layer": layer, "head": head, "one": np.array([1]), "last": np.array([2])}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["h0"])]
    for number in range(layers):
        nodes.append(helper.make_node("MatMul", [f"h{number}", "layer"], [f"m{number}"]))
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [f"h{number + 1}"]))
    nodes += [
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["column"]),
        helper.make_node("ReduceSum", ["column", "one"], ["count"], keepdims=0),
    ]
    for number in range(layers + 1) if states else (layers,):
        nodes.append(helper.make_node("Mul", [f"h{number}", "column"], [f"kept{number}"]))
        nodes.append(helper.make_node("ReduceSum", [f"kept{number}", "one"], [f"sum{number}"], keepdims=0))
        nodes.append(helper.make_node("Div", [f"sum{number}", "count"], [f"mean{number}"]))
    embedding = "embedding" if states else "embeddings"
    width = head.shape[1] + (WIDTH * (layers + 1) if states else 0)
    nodes += [
        helper.make_node("MatMul", [f"sum{layers}", "head"], ["mapped"]),
        helper.make_node("LpNormalization", ["mapped"], [embedding], axis=1, p=2),
    ]
    if states:
        means = [f"mean{number}" for number in range(layers + 1)]
        nodes.append(helper.make_node("Concat", [embedding, *means], ["embeddings"], axis=1))
    output = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", width])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "layered", [ids, mask], [output], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def rows(bundle: Bundle, variant: str, texts: Sequence[str]) -> np.ndarray:
    """What a variant's graph gives, one text at a time, by ONNX Runtime alone: float32 (n, d)."""
    found = variants.named(bundle.manifest, variant)
    assert found is not None
    session = ort.InferenceSession(bundle.file(found.files[0]), providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.file(bundle.manifest.tokenizer)))
    tokenizer.enable_truncation(TOKENS)
    ids = [np.array([tokenizer.encode(text).ids], np.int64) for text in texts]
    return np.concatenate(
        [session.run(None, {"input_ids": each, "attention_mask": np.ones_like(each)})[0] for each in ids]
    )


def space(bundle: Bundle, variant: str) -> str:
    """The space of a variant."""
    found = variants.named(bundle.manifest, variant)
    assert found is not None
    return variants.alone(bundle.manifest, found).space


def _entry(folder: Path, path: Path) -> File:
    return msgspec.structs.replace(artifact.digest(path), path=path.relative_to(folder).as_posix())
