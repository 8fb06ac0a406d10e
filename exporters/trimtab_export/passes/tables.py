"""Stores the tables of words and positions in 8 bits; rows become float32 when they are looked up.

Each row has its own scale, so its error is at most its largest value over 254. For an encoder with many
words, the table is most of the file.
"""

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from trimtab_export.graph.editing import attribute
from trimtab_export.passes.linear import Writer, steps

MOST = 127
LEAST_BYTES = 1 << 18  # smaller tables are not worth the operators


def to_int8(writer: Writer, graph: Any) -> None:
    """Replace each look-up of rows in a large float32 table of `graph`, which `writer` changes."""
    tables = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and 4 * int(np.prod(tensor.dims)) >= LEAST_BYTES
    }
    writer.nodes(lambda node: _looked_up(writer, node) if _reads(node, tables) else [node])


def _reads(node: Any, tables: set[str]) -> bool:
    return node.op_type == "Gather" and attribute(node, "axis", 0) == 0 and node.input[0] in tables


def _looked_up(writer: Writer, node: Any) -> list[Any]:
    table, ids = node.input
    (output,) = node.output
    rows = writer.value(table)
    scales = steps(np.abs(rows).max(axis=1, keepdims=True), MOST)
    integers = np.rint(rows / scales).astype(np.int8)
    found, scale, floats = (writer.name(f"{output}/{part}") for part in ("rows", "scales", "floats"))
    return [
        helper.make_node("Gather", [writer.constant(f"{table}/rows", integers), ids], [found]),
        helper.make_node("Gather", [writer.constant(f"{table}/scales", scales), ids], [scale]),
        helper.make_node("Cast", [found], [floats], to=TensorProto.FLOAT),
        helper.make_node("Mul", [floats, scale], [output]),
    ]
