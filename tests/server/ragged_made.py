"""A graph that gives several things of each text from one pass: a dense vector, the vectors of its tokens,
and a sparse vector with an entry a token."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from tests import hostile
from tests.hostile import DIMENSIONS, FLOAT, INT64, TABLE, Node
from trimtab_server.engine.batch import OutputSpec

DENSE = OutputSpec("dense", "embeddings", DIMENSIONS, unit=True)
TOKENS = OutputSpec("tokens", "token_vectors", DIMENSIONS, several=True, offsets="ends", unit=True)
INDICES = OutputSpec("sparse.indices", "indices", dtype="int32", several=True, offsets="ends")
VALUES = OutputSpec("sparse.values", "values", several=True, offsets="ends", places="sparse.indices")
ALL = (DENSE, TOKENS, INDICES, VALUES)


def graph(more: Sequence[Node] = (), *, ends: str = "offsets", rows: str = "packed") -> bytes:
    """The graph, with nodes that may make others of its `ends` and token vectors."""
    inputs = [hostile.value(each, INT64, ["n", "l"]) for each in ("input_ids", "attention_mask")]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=FLOAT),
        helper.make_node("Unsqueeze", ["real", "two"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("LpNormalization", ["sum"], ["embeddings"], axis=1, p=2),
        helper.make_node("NonZero", ["attention_mask"], ["where"]),
        helper.make_node("Transpose", ["where"], ["places"]),
        helper.make_node("GatherND", ["rows", "places"], ["states"]),
        helper.make_node("LpNormalization", ["states"], ["packed"], axis=1, p=2),
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["counts"], keepdims=0),
        helper.make_node("CumSum", ["counts", "nought"], ["sums"]),
        helper.make_node("Concat", ["first", "sums"], ["offsets"], axis=0),
        helper.make_node("GatherND", ["input_ids", "places"], ["ids"]),
        helper.make_node("Cast", ["ids"], ["indices"], to=TensorProto.INT32),
        helper.make_node("ReduceMax", ["packed"], ["values"], axes=[1], keepdims=0),
        *more,
        helper.make_node("Identity", [ends], ["ends"]),
        helper.make_node("Identity", [rows], ["token_vectors"]),
    ]
    outputs = [
        hostile.value("embeddings", FLOAT, ["n", DIMENSIONS]),
        hostile.value("token_vectors", FLOAT, ["rows", DIMENSIONS]),
        hostile.value("indices", TensorProto.INT32, ["rows"]),
        hostile.value("values", FLOAT, ["rows"]),
        hostile.value("ends", INT64, ["ends"]),
    ]
    constants = {
        "table": TABLE, "one": np.array([1]), "two": np.array([2]), "nought": np.array(0),
        "first": np.array([0]),
    }  # fmt: skip
    return hostile.model(nodes, inputs, outputs, constants)


def expected(ids: np.ndarray) -> dict[str, np.ndarray]:
    """What it gives of one text."""
    states = TABLE[ids]
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    total = states.sum(axis=0)
    return {
        "dense": total / np.linalg.norm(total),
        "tokens": unit,
        "sparse.indices": ids,
        "sparse.values": unit.max(axis=1),
    }
