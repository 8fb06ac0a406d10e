"""Stores weights in 8 or 4 bits, in blocks that each have a scale: small, and close to float32.

ONNX Runtime multiplies them with inputs that it rounds to 8 bits in blocks of each token, so a vector does
not depend on its neighbours in the batch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from trimtab.errors import ExportError
from trimtab_export.graph.head import GRAPH, save
from trimtab_export.passes import tables
from trimtab_export.passes.linear import CONTRIB, Linear, Writer, linears, steps

PREFIX = "blocks"
EIGHT_BIT_INPUTS = 4  # ONNX Runtime's number for it
# Weights that share a scale, by their bits. With blocks of 128, the order of summation depends on the number
# of rows, so a vector would depend on its neighbours.
BLOCKS = {8: 64, 4: 32}


def to_blocks(graph: Path, folder: Path, *, bits: int) -> tuple[Path, ...]:
    """Write `folder`/model.onnx with the weights of linear layers in 8 or 4 bits; its files, the graph first.

    Blocks of 64 (or 32, at 4 bits) weights of an output share a scale. A layer whose number of inputs is not
    a multiple of the block stays as it is. Large tables get 8 bits.
    """
    model = onnx.load(str(graph))
    block = BLOCKS[bits]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [linear for linear in linears(model.graph) if constants[linear.weight].dims[0] % block == 0]
    if not layers:
        raise ExportError(
            f"{graph.name} has no linear layer of a multiple of {block} inputs: there is nothing to store in "
            f"{bits} bits"
        )
    writer = Writer(model, PREFIX)
    writer.linears(layers, lambda linear: [_product(writer, linear, bits, block)])
    tables.to_int8(writer, model.graph)
    return save(model, folder / GRAPH)


def _product(writer: Writer, linear: Linear, bits: int, block: int) -> Any:
    """A product with weights in blocks that each have a scale."""
    weight = writer.value(linear.weight)
    width, outputs = weight.shape
    rows = weight.T.reshape(outputs, width // block, block)
    most = 2 ** (bits - 1) - 1
    scales = steps(np.abs(rows).max(axis=2), most)
    integers = np.clip(np.rint(rows / scales[..., None]), -most, most) + most + 1
    packed = integers.astype(np.uint8)
    if bits == 4:
        packed = packed[..., ::2] | (packed[..., 1::2] << 4)
    inputs = [
        linear.input,
        writer.constant(linear.weight, packed),
        writer.constant(f"{linear.weight}/scales", scales),
        *(["", "", linear.bias] if linear.bias else []),
    ]
    return helper.make_node(
        "MatMulNBits",
        inputs,
        [linear.output],
        domain=CONTRIB,
        K=width,
        N=outputs,
        bits=bits,
        block_size=block,
        accuracy_level=EIGHT_BIT_INPUTS,
    )
