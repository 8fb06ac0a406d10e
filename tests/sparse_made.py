"""Hand-made bundles whose graph gives a dense and a sparse vector of each text; and the truth, in NumPy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper

from tests import hostile
from tests.hostile import DIMENSIONS, FLOAT, INT64, SPECIAL, TABLE, WORDS, Node
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import space
from trimtab.artifacts.manifest import Manifest, Output, Tensor
from trimtab.values.sparse import SparseVectors

VOCABULARY = len(SPECIAL) + len(WORDS)
SETTINGS = {"activation": "log1p", "pooling": "max"}
BIAS = np.float32(-6.0)  # so that few components are above 0
KNOWN = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}


def truth(texts: Sequence[str]) -> SparseVectors:
    """The sparse vectors of texts of WORDS."""
    found = []
    for text in texts:
        states = TABLE[[2, *(KNOWN[word] for word in text.split()), 3]]
        found.append(np.log1p(np.maximum((states @ TABLE.T + BIAS).max(axis=0), 0)))
    rows, places = np.nonzero(np.stack(found))
    indptr = np.searchsorted(rows, np.arange(len(texts) + 1)).astype(np.int64)
    return SparseVectors(indptr, places.astype(np.int32), np.stack(found)[rows, places], VOCABULARY)


def graph(more: Sequence[Node] = (), *, indices: str = "places", values: str = "weights") -> bytes:
    """The graph, with nodes that may make others of its int32 `places` and float `weights`, (entries,)."""
    inputs = [hostile.value(each, INT64, ["n", "l"]) for each in ("input_ids", "attention_mask")]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=FLOAT),
        helper.make_node("Unsqueeze", ["real", "two"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["embeddings"], axis=1, p=2),
        helper.make_node("MatMul", ["rows", "turned"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["logits"]),
        helper.make_node("Mul", ["logits", "column"], ["of_tokens"]),
        helper.make_node("ReduceMax", ["of_tokens"], ["most"], axes=[1], keepdims=0),
        helper.make_node("Relu", ["most"], ["above"]),
        helper.make_node("Add", ["above", "unity"], ["more_than_one"]),
        helper.make_node("Log", ["more_than_one"], ["long"]),
        helper.make_node("Greater", ["long", "zero"], ["there"]),
        helper.make_node("NonZero", ["there"], ["where"]),
        helper.make_node("Transpose", ["where"], ["pairs"]),
        helper.make_node("GatherND", ["long", "pairs"], ["weights"]),
        helper.make_node("Gather", ["where", "second"], ["columns"], axis=0),
        helper.make_node("Cast", ["columns"], ["places"], to=TensorProto.INT32),
        helper.make_node("Cast", ["there"], ["ones"], to=INT64),
        helper.make_node("ReduceSum", ["ones", "one"], ["counts"], keepdims=0),
        helper.make_node("CumSum", ["counts", "nought"], ["sums"]),
        helper.make_node("Concat", ["first", "sums"], ["sparse.offsets"], axis=0),
        *more,
        helper.make_node("Identity", [indices], ["sparse.indices"]),
        helper.make_node("Identity", [values], ["sparse.values"]),
    ]
    outputs = [
        hostile.value("embeddings", FLOAT, ["n", DIMENSIONS]),
        hostile.value("sparse.indices", TensorProto.INT32, ["rows"]),
        hostile.value("sparse.values", FLOAT, ["rows"]),
        hostile.value("sparse.offsets", INT64, ["ends"]),
    ]
    constants = {
        "table": TABLE, "turned": TABLE.T.copy(), "bias": BIAS, "one": np.array([1]), "two": np.array([2]),
        "nought": np.array(0), "first": np.array([0]), "second": np.array(1), "zero": np.float32(0),
        "unity": np.float32(1),
    }  # fmt: skip
    return hostile.model(nodes, inputs, outputs, constants)


def manifest(plain: Manifest, *, sparse_first: bool = False, **changes: Any) -> Manifest:
    """The manifest of a bundle of the good encoder, with the sparse output beside the dense one."""
    made = Output(
        name="sparse", kind="sparse", space="", space_parts=plain.output.space_parts, dimensions=VOCABULARY,
        similarity="dot", pooling=None, normalized=False, settings=SETTINGS,
    )  # fmt: skip
    sparse = space.named(msgspec.structs.replace(made, **changes), [plain.input])
    outputs = (sparse, plain.output) if sparse_first else (plain.output, sparse)
    tensors = {
        "dense": Tensor(name="embeddings"),
        "sparse.indices": Tensor(name="sparse.indices", offsets="sparse.offsets"),
        "sparse.values": Tensor(name="sparse.values", offsets="sparse.offsets"),
    }
    variant = msgspec.structs.replace(plain.variants[0], tensors=tensors)
    names = tuple(each.name for each in outputs)
    tower = msgspec.structs.replace(plain.towers[0], outputs=names, variants=(variant,))
    return msgspec.structs.replace(plain, outputs=outputs, towers=(tower,))


def bundle(
    repository: Path,
    name: str,
    content: bytes | None = None,
    *,
    sparse_first: bool = False,
    version: int = 1,
    **changes: Any,
) -> Path:
    """REPOSITORY/NAME/VERSION with this graph; `changes` are those of its sparse output."""
    folder = hostile.bundle(repository, name, graph() if content is None else content, version=version)
    path = folder / bundles.MANIFEST
    plain = msgspec.json.decode(path.read_bytes(), type=Manifest)
    path.write_bytes(msgspec.json.encode(manifest(plain, sparse_first=sparse_first, **changes)))
    return folder
