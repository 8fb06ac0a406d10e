"""Static int8: the linear layers of a graph multiply bytes, by scales that are fixed when the graph is made.

The scale of a layer's input is measured on real texts beforehand and is the same for every text, so a vector
does not change with its neighbours in the batch; scales taken from each batch, the usual dynamic kind, do
that. Each layer becomes QuantizeLinear and ONNX Runtime's MatMulIntegerToFloat, written into the graph as
they are: the same in QDQ form is left to pattern matching, which a product and a sum of rank 2 (what is left
when the padding is taken out) defeat without a word.

Weights have 7 bits: processors without VNNI add two products of 8 bits in 16, which overflows; and one bundle
is served by any of them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trimtab.errors import ExportError
from trimtab_export import runtime
from trimtab_export.graph.head import GRAPH, save

Tokens: TypeAlias = Mapping[str, NDArray[np.int64]]
Floats: TypeAlias = NDArray[np.float32]

CONTRIB = "com.microsoft"
PREFIX = "int8"
MOST_WEIGHT = 63  # of 7 bits with a sign
MOST_SIGNED = 127
MOST_INPUT = 255  # of 8 bits without
EIGHT_BIT_INPUTS = 4  # what ONNX Runtime calls it
# Weights that share a scale, by their bits. With blocks of 128 the sums are added in an order that depends on
# the number of rows, and the vector on its neighbours.
BLOCKS = {8: 64, 4: 32}


@dataclass(frozen=True)
class Linear:
    """A product with constant weights (in, out) in a graph, and the sum with a constant bias behind it."""

    product: Any
    weight: str
    bias: str | None
    output: str  # of the sum, where there is one

    @property
    def input(self) -> str:
        return str(self.product.input[0])


def linears(graph: Any) -> list[Linear]:
    """The linear layers of an ONNX graph, in its order: MatMul with an initializer, and Add behind it."""
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    ends = {value.name for value in graph.output}
    found = []
    for node in graph.node:
        if node.op_type != "MatMul" or ranks.get(node.input[1]) != 2:
            continue
        bias, output = None, node.output[0]
        following = users.get(output, [])
        if len(following) == 1 and following[0].op_type == "Add" and output not in ends:
            (other,) = [name for name in following[0].input if name != output] or [""]
            if ranks.get(other) == 1:
                bias, output = other, following[0].output[0]
        found.append(Linear(node, node.input[1], bias, output))
    return found


def ranges(graph: Path, batches: Iterable[Tokens]) -> dict[str, tuple[float, float]]:
    """The least and the largest value that each linear layer of a graph reads on real tokens."""
    model = onnx.load(str(graph), load_external_data=False)
    names = sorted({linear.input for linear in linears(model.graph)})
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    probe = graph.with_name(".probe.onnx")
    try:
        onnx.save(model, str(probe))
        session = runtime.session(probe, threads=1)
    finally:
        probe.unlink(missing_ok=True)
    inputs = [value.name for value in session.get_inputs()]
    seen: dict[str, tuple[float, float]] = {}
    for batch in batches:
        real = batch["attention_mask"] == 1
        for name, value in zip(
            names, session.run(names, {name: batch[name] for name in inputs}), strict=True
        ):
            tokens = value[real] if value.ndim == 3 else value
            low, high = seen.get(name, (0.0, 0.0))
            seen[name] = min(low, float(tokens.min())), max(high, float(tokens.max()))
    return seen


def to_int8(graph: Path, batches: Iterable[Tokens], folder: Path) -> tuple[Path, ...]:
    """Write `folder`/model.onnx, the graph with int8 linear layers; its files, the graph first.

    Args:
        graph: float32, its padding taken out or not.
        batches: of real texts, padded as little as possible, to measure the inputs of the layers on.
        folder: made where it does not exist.

    Raises ExportError where the graph has no linear layers, or one of them reads values that are not finite.
    """
    return _rewritten(graph, batches, folder, _Writer.integer)


class _Writer:
    """Puts integer products into a model in the place of linear layers."""

    def __init__(self, model: Any) -> None:
        self._model, self._graph = model, model.graph
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._quantised: dict[str, tuple[str, str, str]] = {}

    def replace(self, layers: Mapping[str, Linear], make: Callable[[Linear], list[Any]]) -> None:
        """Put `make(linear)` where each linear layer was; layers are given by the output of their product."""
        gone = {linear.output for linear in layers.values()}
        nodes = list(self._graph.node)
        del self._graph.node[:]
        for node in nodes:
            if linear := layers.get(node.output[0]):
                self._graph.node.extend(make(linear))
            elif node.output[0] not in gone:
                self._graph.node.append(node)
        self._drop_unused()
        if all(entry.domain != CONTRIB for entry in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        del self._graph.value_info[:]

    def integer(self, linear: Linear, ends: tuple[float, float]) -> list[Any]:
        """A product of bytes; before the first one of an input, its conversion."""
        nodes = []
        if linear.input not in self._quantised:
            scale = max(ends[1] - ends[0], 1e-8) / MOST_INPUT
            names = (
                f"{PREFIX}/{linear.input}",
                self._constant(f"{linear.input}/scale", np.float32(scale)),
                self._constant(f"{linear.input}/zero", np.uint8(round(-ends[0] / scale))),
            )
            nodes.append(helper.make_node("QuantizeLinear", [linear.input, *names[1:]], [names[0]]))
            self._quantised[linear.input] = names
        quantised, scale_name, zero = self._quantised[linear.input]
        weight = numpy_helper.to_array(self._constants[linear.weight])
        scales = np.maximum(np.abs(weight).max(axis=0), 1e-8).astype(np.float32) / MOST_WEIGHT
        integers = np.clip(np.rint(weight / scales), -MOST_WEIGHT, MOST_WEIGHT).astype(np.int8)
        inputs = [
            quantised,
            self._constant(linear.weight, integers),
            scale_name,
            self._constant(f"{linear.weight}/scales", scales),
            zero,
            self._constant(f"{linear.weight}/zeros", np.zeros(len(scales), np.int8)),
            *([linear.bias] if linear.bias else []),
        ]
        return [*nodes, helper.make_node("MatMulIntegerToFloat", inputs, [linear.output], domain=CONTRIB)]

    def explicit(self, linear: Linear, ends: tuple[float, float]) -> list[Any]:
        """A product of dequantised tensors; before the first one of an input, its Q and DQ."""
        nodes = []
        if linear.input not in self._quantised:
            scale = self._constant(
                f"{linear.input}/scale", np.float32(max(*map(abs, ends), 1e-8) / MOST_SIGNED)
            )
            zero = self._constant(f"{linear.input}/zero", np.int8(0))
            names = (f"{PREFIX}/{linear.input}", scale, zero)
            nodes.append(helper.make_node("QuantizeLinear", [linear.input, *names[1:]], [names[0]]))
            nodes.append(helper.make_node("DequantizeLinear", list(names), [f"{names[0]}/back"]))
            self._quantised[linear.input] = names
        weight = numpy_helper.to_array(self._constants[linear.weight])
        scales = np.maximum(np.abs(weight).max(axis=0), 1e-8).astype(np.float32) / MOST_SIGNED
        integers = np.clip(np.rint(weight / scales), -MOST_SIGNED, MOST_SIGNED).astype(np.int8)
        back = f"{PREFIX}/{linear.weight}/{linear.output}/back"
        weights = [
            self._constant(linear.weight, integers),
            self._constant(f"{linear.weight}/scales", scales),
            self._constant(f"{linear.weight}/zeros", np.zeros(len(scales), np.int8)),
        ]
        nodes.append(helper.make_node("DequantizeLinear", weights, [back], axis=1))
        product = f"{linear.output}/product" if linear.bias else linear.output
        activation = f"{self._quantised[linear.input][0]}/back"
        nodes.append(helper.make_node("MatMul", [activation, back], [product]))
        if linear.bias:
            nodes.append(helper.make_node("Add", [product, linear.bias], [linear.output]))
        return nodes

    def blocks(self, linear: Linear, bits: int, block: int) -> Any:
        """A product with weights in blocks, each with a scale."""
        weight = numpy_helper.to_array(self._constants[linear.weight])
        width, outputs = weight.shape
        rows = weight.T.reshape(outputs, width // block, block)
        most = 2 ** (bits - 1) - 1
        scales = np.maximum(np.abs(rows).max(axis=2), 1e-8).astype(np.float32) / most
        integers = np.clip(np.rint(rows / scales[..., None]), -most, most) + most + 1
        packed = integers.astype(np.uint8)
        if bits == 4:
            packed = packed[..., ::2] | (packed[..., 1::2] << 4)
        inputs = [
            linear.input,
            self._constant(linear.weight, packed),
            self._constant(f"{linear.weight}/scales", scales),
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

    def _constant(self, name: str, value: Any) -> str:
        name = f"{PREFIX}/{name}"
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
            self._graph.initializer.append(self._constants[name])
        return name

    def _drop_unused(self) -> None:
        used = {name for node in self._graph.node for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)


def to_qdq(graph: Path, batches: Iterable[Tokens], folder: Path) -> tuple[Path, ...]:
    """Write `folder`/model.onnx with QuantizeLinear and DequantizeLinear around the linear layers; its files.

    That is how TensorRT reads int8: symmetric, one scale for the input, one for each output of the weights.
    On a CPU it is slower than `to_int8`.
    """
    return _rewritten(graph, batches, folder, _Writer.explicit)


def _rewritten(
    graph: Path,
    batches: Iterable[Tokens],
    folder: Path,
    write: Callable[[_Writer, Linear, tuple[float, float]], list[Any]],
) -> tuple[Path, ...]:
    """The graph with each linear layer as `write` has it, given the measured range of the layer's input."""
    measured = ranges(graph, batches)
    model = onnx.load(str(graph))
    layers = linears(model.graph)
    if not layers:
        raise ExportError(f"{graph.name} has no MatMul with constant weights: there is nothing to quantise")
    if bad := sorted(name for name, ends in measured.items() if not np.isfinite(ends).all()):
        raise ExportError(
            f"{graph.name} computes values that are not finite ({bad[0]}): its weights are broken"
        )
    writer = _Writer(model)
    writer.replace(
        {linear.product.output[0]: linear for linear in layers},
        lambda linear: write(writer, linear, measured[linear.input]),
    )
    return save(model, folder / GRAPH)


def to_blocks(graph: Path, folder: Path, *, bits: int) -> tuple[Path, ...]:
    """Write `folder`/model.onnx with the weights of linear layers in 8 or 4 bits; its files, the graph first.

    Blocks of 64 (or 32, at 4 bits) weights of an output share a scale. ONNX Runtime multiplies them with
    inputs that it rounds to 8 bits by blocks of each token, so a vector does not change with its neighbours.
    A layer whose inputs are no multiple of the block stays as it is.
    """
    model = onnx.load(str(graph))
    block = BLOCKS[bits]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = {
        linear.product.output[0]: linear
        for linear in linears(model.graph)
        if constants[linear.weight].dims[0] % block == 0
    }
    if not layers:
        raise ExportError(
            f"{graph.name} has no linear layer of a multiple of {block} inputs: there is nothing to store in "
            f"{bits} bits"
        )
    writer = _Writer(model)
    writer.replace(layers, lambda linear: [writer.blocks(linear, bits, block)])
    return save(model, folder / GRAPH)
