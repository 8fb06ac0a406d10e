"""Static int8: the linear layers of a graph multiply bytes, with scales that are fixed when the graph is
made.

The scale of a layer's input is measured on real texts beforehand and is the same for every text, so a vector
does not depend on its neighbours in the batch; with the usual dynamic scales, taken from each batch, it
would. Each layer becomes QuantizeLinear and ONNX Runtime's MatMulIntegerToFloat, written into the graph
directly. The QDQ form would rely on pattern matching, which silently fails on products and sums of rank 2, as
they are without padding.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from trimtab.errors import ExportError
from trimtab_export.graph.head import GRAPH, save
from trimtab_export.passes import activations, ranges, tables
from trimtab_export.passes.activations import QuantisedInput
from trimtab_export.passes.linear import CONTRIB, Linear, Writer, linears, steps
from trimtab_export.passes.ranges import Range, Tokens

Floats: TypeAlias = NDArray[np.float32]

PREFIX = "int8"
MOST_SIGNED = 127


def to_int8(graph: Path, batches: Iterable[Tokens], folder: Path) -> tuple[Path, ...]:
    """Write `folder`/model.onnx, the graph with int8 linear layers and tables; its files, the graph first.

    Args:
        graph: float32, with or without its padding.
        batches: of real texts, with as little padding as possible, to measure the layers' inputs on.
        folder: created if it does not exist.

    Raises ExportError if the graph has no linear layers, or one of them reads values that are not finite.
    """
    return _rewritten(graph, batches, folder, _Quantiser.integer, small_tables=True)


def to_qdq(graph: Path, batches: Iterable[Tokens], folder: Path) -> tuple[Path, ...]:
    """Write `folder`/model.onnx with QuantizeLinear and DequantizeLinear around the linear layers; its files.

    That is how TensorRT reads int8: symmetric, one scale for the input, one for each output of the weights.
    On a CPU it is slower than `to_int8`.
    """
    return _rewritten(graph, batches, folder, _Quantiser.explicit, small_tables=False)


class _Quantiser:
    """Makes integer products for linear layers, given the ranges of their inputs."""

    def __init__(self, writer: Writer, layers: list[Linear], measured: Mapping[str, Range]) -> None:
        self._writer, self._measured = writer, measured
        self._weights: dict[str, list[Floats]] = {}
        for linear in layers:
            self._weights.setdefault(linear.input, []).append(writer.value(linear.weight))
        self._inputs: dict[str, QuantisedInput] = {}

    def integer(self, linear: Linear) -> list[Any]:
        """A product of bytes."""
        nodes, read = self._read(linear, activations.unsigned)
        weight, scales, zeros = self._weight(linear, read, pairs=True)
        inputs = [read.quantised, weight, read.scale, scales, read.zero, zeros]
        bias = [linear.bias] if linear.bias else []
        if read.tokens is None:
            product = helper.make_node(
                "MatMulIntegerToFloat", [*inputs, *bias], [linear.output], domain=CONTRIB
            )
            return [*nodes, product]
        steps, floats = (self._writer.name(f"{linear.output}/{part}") for part in ("steps", "product"))
        nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [steps], domain=CONTRIB))
        nodes.append(helper.make_node("Mul", [steps, read.tokens], [floats if bias else linear.output]))
        if bias:
            nodes.append(helper.make_node("Add", [floats, *bias], [linear.output]))
        return nodes

    def explicit(self, linear: Linear) -> list[Any]:
        """A product of dequantised tensors."""
        nodes, read = self._read(linear, activations.signed)
        input_back = f"{read.quantised}/back"
        if nodes:
            made = [read.quantised, read.scale, read.zero]
            nodes = [*nodes, helper.make_node("DequantizeLinear", made, [input_back])]
        back = self._writer.name(f"{linear.weight}/{linear.output}/back")
        weights = self._weight(linear, read, pairs=False)
        nodes.append(helper.make_node("DequantizeLinear", weights, [back], axis=1))
        product = f"{linear.output}/product" if linear.bias else linear.output
        nodes.append(helper.make_node("MatMul", [input_back, back], [product]))
        if linear.bias:
            nodes.append(helper.make_node("Add", [product, linear.bias], [linear.output]))
        return nodes

    def _read(
        self, linear: Linear, make: Callable[[Writer, str, Range, list[Floats]], QuantisedInput]
    ) -> tuple[list[Any], QuantisedInput]:
        """A layer's input in 8 bits, and the nodes that still have to be written for it."""
        name = linear.input
        if name in self._inputs:
            return [], self._inputs[name]
        made = make(self._writer, name, self._measured[name], self._weights[name])
        self._inputs[name] = made
        return list(made.nodes), made

    def _weight(self, linear: Linear, read: QuantisedInput, *, pairs: bool) -> list[str]:
        """The names of a layer's integers (in, out), of their scales (out,) and of their zeros."""
        weight, name = self._writer.value(linear.weight), linear.weight
        if read.factors is not None:  # another layer may use the same weights with another input
            weight, name = weight * read.factors[:, None], f"{name}/{linear.input}"
        integers, scales = rounded(weight, largest_pair(weight) if pairs else None)
        return [
            self._writer.constant(name, integers.astype(np.int8)),
            self._writer.constant(f"{name}/scales", scales),
            self._writer.constant(f"{name}/zeros", np.zeros(len(scales), np.int8)),
        ]


def rounded(weight: Floats, pairs: Floats | None = None) -> tuple[Floats, Floats]:
    """Weights (in, out) as whole numbers from -127 to 127, and their scales, (out,).

    Args:
        pairs: what `largest_pair` returns, to leave room for sums of two.
    """
    largest = np.abs(weight).max(axis=0)
    if pairs is not None:
        largest = np.maximum(largest, pairs)  # rounding adds one at most
    scales = steps(largest, MOST_SIGNED)
    integers: Floats = np.rint(weight / scales)
    return integers, scales


def largest_pair(weight: Floats) -> Floats:
    """The largest absolute sum of two neighbours (0 and 1, 2 and 3, ...) of the same sign; (out,).

    Processors without VNNI multiply two neighbours by an input each and add both in 16 bits, which hold 255
    times 128. So the sum of two is limited to 128. The usual remedy, 7 bits for all weights, loses more.
    """
    odd = len(weight) % 2
    pairs = np.concatenate([weight, np.zeros((odd, weight.shape[1]), weight.dtype)])
    pairs = pairs.reshape(-1, 2, weight.shape[1])
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1))
    found: Floats = sums.max(axis=0)
    return found


def _rewritten(
    graph: Path,
    batches: Iterable[Tokens],
    folder: Path,
    write: Callable[[_Quantiser, Linear], list[Any]],
    *,
    small_tables: bool,
) -> tuple[Path, ...]:
    """The graph with each linear layer replaced by `write`."""
    model = onnx.load(str(graph))
    layers = linears(model.graph)
    if not layers:
        raise ExportError(f"{graph.name} has no MatMul with constant weights: there is nothing to quantise")
    writer = Writer(model, PREFIX)
    quantiser = _Quantiser(writer, layers, ranges.measure(graph, batches))
    writer.linears(layers, lambda linear: write(quantiser, linear))
    if small_tables:
        tables.to_int8(writer, model.graph)
    return save(model, folder / GRAPH)
