"""Remove the padding from a graph: everything that acts on single tokens runs only on real tokens.

In a padded batch, every linear layer wastes work on the padding. Here the token states are packed to
(tokens, width) before the first layer norm, and spread to (n, length, width) only where the tokens of a text
interact, in the attention. Source: ByteTransformer (Zhai et al., 2023, arXiv:2210.03052), but as a rewrite of
any ONNX graph instead of one architecture's code: it uses operators and ranks, never names of layers.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from trimtab.errors import ExportError
from trimtab.inputs.text import VECTORS
from trimtab_export import runtime
from trimtab_export.graph import editing
from trimtab_export.graph.head import opset_of
from trimtab_export.graph.nodes import Nodes

Tokens: TypeAlias = Mapping[str, NDArray[np.int64]]

FIRST_OPSET = 13  # Squeeze with its axes as an input
TOLERANCE = 1e-5
PREFIX = "unpad"
# Operators that act on each token by itself if their other inputs are constants or tokens, too.
UNARY = {"Erf", "Tanh", "Relu", "Sigmoid", "Gelu", "Cast", "Identity", "Sqrt", "Neg", "Exp", "Reciprocal"}
BINARY = {"Add", "Sub", "Mul", "Div", "Pow"}
STARTS = {"LayerNormalization", "MatMul"}


def take_padding_out(
    graph: Path, batch: Tokens, agree: Callable[[Any, Any, float], bool] | None = None
) -> int:
    """Rewrite the graph file if that does not change what it gives for `batch`.

    `batch` is a padded batch of texts of different lengths. `agree` says whether two sessions give the same
    for it, up to such a difference; by default, all their tensors are compared. Returns how many matrix
    products now run on packed tokens; 0 if the graph has no such form and was left unchanged.
    """
    model = onnx.load(str(graph), load_external_data=False)
    products = unpad(model)
    if not products:
        return 0
    rewritten = graph.with_name(f"{graph.stem}.unpadded.onnx")
    onnx.save(model, str(rewritten))
    try:
        before, after = (runtime.session(path) for path in (graph, rewritten))
        if agree is not None:
            same = agree(before, after, TOLERANCE)
        else:
            names = [value.name for value in model.graph.output]
            same = all(_same(*(runtime.run(each, name, batch) for each in (before, after))) for name in names)
    except ExportError:  # if it is the source's own fault, the comparison with it will say so
        same = False
    if not same:
        rewritten.unlink()
        return 0
    rewritten.replace(graph)
    return products


def _same(before: NDArray[Any], after: NDArray[Any]) -> bool:
    if before.shape != after.shape:
        return False
    difference = float(np.abs(after - before).max(initial=0))
    return difference <= TOLERANCE * max(1.0, float(np.abs(before).max(initial=0)))


def unpad(model: Any) -> int:
    """Rewrite a model in place; returns how many matrix products run on packed tokens.

    The model must have the input `attention_mask`, int64 (n, length), 1 for tokens and 0 for padding; it may
    have `vector_mask`, 1 for further tokens that are no padding. A result of 0 means that there was nothing
    to rewrite, and the model is unchanged.
    """
    if opset_of(model) < FIRST_OPSET:
        return 0
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    rewriter = _Rewriter(model.graph, shapes)
    nodes = rewriter.rewrite()
    if rewriter.products:
        editing.replace_nodes(model.graph, nodes)
        model.graph.initializer.extend(rewriter.constants)
    return rewriter.products


class _Rewriter:
    """Walks the nodes once, in order, and keeps everything that acts on tokens in packed form."""

    def __init__(self, graph: Any, shapes: dict[str, list[int]]) -> None:
        self._graph = graph
        self._shapes = shapes
        self._ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        self._rows: dict[str, int] = {
            tensor.name: int(tensor.dims[0]) for tensor in graph.initializer if tensor.dims
        }
        for node in graph.node:
            if node.op_type == "Constant":
                value = editing.attribute(node, "value")
                if value is not None:
                    self._ranks[node.output[0]] = len(value.dims)
        self._packed: dict[str, str] = {}  # a tensor (n, length, width) -> the same as (tokens, width)
        self._spread: set[str] = set()  # those that also exist padded
        self._nodes: list[Any] = []
        self.constants: list[Any] = []
        self._new = Nodes(PREFIX, self._nodes, self.constants)
        self.products = 0

    def rewrite(self) -> list[Any]:
        """The graph's nodes, rewritten, in a valid order."""
        self._indices()
        for node in self._graph.node:
            if self._acts_on_tokens(node):
                self._pack(node)
            else:
                for name in node.input:
                    self._need_padded(name)
                self._nodes.append(node)
        for value in self._graph.output:
            self._need_padded(value.name)
        return self._nodes

    def _acts_on_tokens(self, node: Any) -> bool:
        tokens = [name for name in node.input if name and name not in self._ranks]
        constants = [self._ranks[name] for name in node.input if name in self._ranks]
        if node.op_type in STARTS:
            # Only these may start a packed section: anything that a mask set to zero stays padded.
            source = node.input[0]
            first = tokens == [source] and (source in self._packed or self._width(node, source) > 0)
            if node.op_type == "MatMul":
                return first and constants == [2] and bool(self._packed)
            return first and editing.attribute(node, "axis", -1) in (-1, 2)
        if not tokens or not all(name in self._packed for name in tokens):
            return False
        return node.op_type in UNARY or (node.op_type in BINARY and all(rank <= 1 for rank in constants))

    def _pack(self, node: Any) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [
            name if name in self._ranks or not name else self._as_packed(name, self._width(node, name))
            for name in node.input
        ]
        copy.output[0] = f"{PREFIX}/{node.output[0]}"
        for attribute in copy.attribute:
            if attribute.name == "axis":
                attribute.i = -1
        self._nodes.append(copy)
        self._packed[node.output[0]] = copy.output[0]
        self.products += node.op_type == "MatMul"

    def _as_packed(self, name: str, width: int) -> str:
        if name not in self._packed:
            flat = self._new.node("Reshape", name, self._new.whole([-1, width]))
            self._packed[name] = self._new.node("Gather", flat, self._real, axis=0)
            self._spread.add(name)
        return self._packed[name]

    def _need_padded(self, name: str) -> None:
        """Spread a packed tensor under its own name. Padding repeats the token before it; masks hide it."""
        if name in self._packed and name not in self._spread:
            rows = self._new.node("Gather", self._packed[name], self._places, axis=0)
            shape = self._new.node("Concat", self._shape, self._new.whole([-1]), axis=0)
            self._new.node("Reshape", rows, shape, name=f"{PREFIX}/to/{name}", output=name)
            self._spread.add(name)

    def _indices(self) -> None:
        """The positions of the real tokens in the flat batch, and the packed row of each position."""
        mask = "attention_mask"
        if any(value.name == VECTORS for value in self._graph.input):
            # A token that gives a vector is no padding, even if no other token attends to it.
            mask = self._new.node("Max", mask, VECTORS)
        self._shape = self._new.node("Shape", mask)
        flat = self._new.node("Reshape", mask, self._new.whole([-1]))
        self._real = self._new.node("Squeeze", self._new.node("NonZero", flat), self._new.whole([0]))
        running = self._new.node("CumSum", flat, self._new.whole(0))
        self._places = self._new.node("Sub", running, self._new.whole(1))

    def _width(self, node: Any, name: str) -> int:
        """The last dimension of a tensor (n, length, width), from its shape or adjacent weights; or 0."""
        shape = self._shapes.get(name, [])
        if len(shape) != 3:
            return 0
        return shape[2] or self._rows.get(node.input[1], 0)
