"""Append heads to a graph, as ONNX nodes after the token states.

That of dense vectors is pooling, dense layers and normalisation; its output is `embeddings`, float32 (n,
dimensions). Heads of other kinds of output are in `trimtab_export.kinds`. The nodes are written for the
graph's own opset, 11 or later, so that a graph made elsewhere needs no conversion.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo, set_external_data, uses_external_data

from trimtab.errors import ExportError
from trimtab.kinds import Pooling
from trimtab_export.graph.editing import subgraphs
from trimtab_export.graph.nodes import Nodes
from trimtab_export.source import Dense, Graph, Head

OUTPUT = "embeddings"
GRAPH = "model.onnx"
WEIGHTS = "weights.bin"
STATES_GRAPH = "model-with-states.onnx"
EXTERNAL = 1024  # from this size on, a tensor is stored next to the graph, where several graphs can share it
FIRST_OPSET = 11  # CumSum, and Equal on floats
FIRST_IR_VERSION = 4
NORM_OPSET = 17  # LayerNormalization
PREFIX = "trimtab"
# From these opsets on, the axes are an input, no longer an attribute.
AXES_AS_INPUT = {"Unsqueeze": 13, "ReduceSum": 13, "ReduceMax": 18, "ReduceL2": 18}
ACTIVATIONS = {"Tanh": "Tanh", "ReLU": "Relu", "Sigmoid": "Sigmoid"}  # torch's name: ONNX's name
LEAST_COUNT = 1e-9  # both as in torch and sentence-transformers
LEAST_NORM = 1e-12


def graft_dense(graph: Graph, head: Head, dimensions: int, folder: Path) -> tuple[Path, Path]:
    """Write `folder`/model.onnx: the graph with this head, and the output `embeddings`.

    Returns the files written: the graph, and weights.bin.
    """
    return graft(graph, folder, [partial(dense, head=head, dimensions=dimensions)])


def graft(graph: Graph, folder: Path, makers: "Sequence[Maker]") -> tuple[Path, Path]:
    """Write `folder`/model.onnx: the graph with heads after `graph.output`.

    Each of `makers` appends nodes, and returns their outputs, which become the graph's.
    Returns the files written: the graph, and weights.bin.
    """
    model = onnx.load(str(graph.path))
    opset = opset_of(model)
    if opset < FIRST_OPSET:
        raise ExportError(
            f"{graph.path.name} has opset {opset}; pooling needs {FIRST_OPSET} or later. "
            "Convert it with onnx.version_converter, or export it again"
        )
    # From this version of the file format on, constants need not be inputs.
    model.ir_version = max(model.ir_version, FIRST_IR_VERSION)
    grafter, taken = new_head(model, "source")
    states = taken if graph.output == OUTPUT else graph.output
    outputs = [value for make in makers for value in make(grafter, states)]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return save(model, folder / GRAPH)


def dense(grafter: "Grafter", states: str, head: Head, dimensions: int | str) -> list[Any]:
    """Append the head of dense vectors; returns its output."""
    grafter.graft(states, head)
    return [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", dimensions])]


def save(model: Any, path: Path) -> tuple[Path, Path]:
    """Write a model with all its weights: the graph, and weights.bin next to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = path.with_name(WEIGHTS)
    weights.write_bytes(b"")  # onnx would append to an existing file, and make it private
    for tensor in model.graph.initializer:  # not in subgraphs: ONNX Runtime takes none from memory
        if len(tensor.raw_data) >= EXTERNAL:
            set_external_data(tensor, WEIGHTS)
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))
    return path, weights


def opset_of(model: Any) -> int:
    """The version of the standard operators that a model uses."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def check_external_data(model: Any, folder: Path) -> None:
    """Refuse a graph whose weights lie outside its folder, or are missing."""
    names = {
        ExternalDataInfo(tensor).location for tensor in model.graph.initializer if uses_external_data(tensor)
    }
    for name in sorted(names):
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"the graph names the data file {name!r}, which lies outside its folder")
        if not (folder / name).is_file():
            raise ExportError(f"the graph's data file {name!r} is missing beside it")


class Grafter(Nodes):
    """Appends the nodes of a head to a graph, for its opset."""

    def __init__(self, graph: Any, opset: int, prefix: str) -> None:
        super().__init__(prefix, graph.node, graph.initializer)
        self._graph, self._opset = graph, opset

    def read(self, value: Any) -> None:
        """Give the graph another input, in ONNX's own description."""
        self._graph.input.append(value)

    def sum(self, tensor: str, axis: int) -> str:
        """Sum over an axis, which the result lacks."""
        return self._axes("ReduceSum", tensor, axis, keepdims=0)

    def graft(self, tensor: str, head: Head) -> None:
        if head.pooling is not None:
            tensor = self.pool(tensor, head.pooling)
        for layer in head.layers:
            tensor = self.dense(tensor, layer) if isinstance(layer, Dense) else self.normalize(tensor)
        self.give(tensor)

    def give(self, tensor: str) -> None:
        """Make this tensor the output `embeddings`."""
        self.node("Identity", tensor, name=self._name("output"), output=OUTPUT)

    def pool(self, states: str, pooling: Pooling) -> str:
        """(n, length, hidden) to (n, hidden). Padding is not read, so batch neighbours do not matter."""
        if pooling == "cls":
            return self.node("Gather", states, self.whole(0), axis=1)
        mask = self.node("Cast", "attention_mask", to=TensorProto.FLOAT)
        if pooling == "max":
            least = self.constant(np.finfo(np.float32).min)
            real = self.node("Cast", self._axes("Unsqueeze", mask, 2), to=TensorProto.BOOL)
            return self._axes("ReduceMax", self.node("Where", real, states, least), 1, keepdims=0)
        count = self._axes("ReduceSum", mask, 1, keepdims=1)
        if pooling == "mean":
            return self.node("Div", self._weighted_sum(states, mask), self._at_least(count, LEAST_COUNT))
        # The last token: the running count has reached the total, and it is not padding.
        running = self.node("CumSum", mask, self.whole(1))
        last = self.node("Cast", self.node("Equal", running, count), to=TensorProto.FLOAT)
        return self._weighted_sum(states, self.node("Mul", last, mask))

    def _weighted_sum(self, states: str, weights: str) -> str:
        """Sum over the length of (n, length, hidden) times (n, length)."""
        product = self.node("Mul", states, self._axes("Unsqueeze", weights, 2))
        return self._axes("ReduceSum", product, 1, keepdims=0)

    def largest(self, tensor: str, axis: int) -> str:
        """The largest number along an axis, which the result lacks."""
        return self._axes("ReduceMax", tensor, axis, keepdims=0)

    def unsqueezed(self, tensor: str, axis: int) -> str:
        """With one more axis, of size 1."""
        return self._axes("Unsqueeze", tensor, axis)

    def layer_norm(self, tensor: str, scale: NDArray[Any], shift: NDArray[Any], epsilon: float) -> str:
        """Layer normalisation over the last axis. ExportError if the graph's opset has no such operator."""
        if self._opset < NORM_OPSET:
            raise ExportError(
                f"the graph has opset {self._opset}, and a layer norm needs {NORM_OPSET}: convert it with "
                "onnx.version_converter, or export it again"
            )
        constants = self.constant(scale), self.constant(shift)
        return self.node("LayerNormalization", tensor, *constants, axis=-1, epsilon=epsilon)

    def concat(self, vectors: list[str]) -> str:
        """Several (n, width) side by side."""
        return self.node("Concat", *vectors, axis=1)

    def dense(self, vectors: str, layer: Dense) -> str:
        """(n, in) to (n, out)."""
        inputs = [vectors, self.constant(layer.weight)]
        if layer.bias is not None:
            inputs.append(self.constant(layer.bias))
        product = self.node("Gemm", *inputs, transB=1)
        return (
            product if layer.activation == "Identity" else self.node(ACTIVATIONS[layer.activation], product)
        )

    def token_scores(self, states: str, layer: Dense) -> str:
        """(n, length, hidden) to (n, length), by a layer of one number."""
        product = self.node("MatMul", states, self.constant(layer.weight.T.copy()))
        if layer.bias is not None:
            product = self.node("Add", product, self.constant(layer.bias))
        return self.node("Reshape", product, self.node("Shape", "attention_mask"))

    def normalize(self, vectors: str) -> str:
        """Scale each row of (n, dimensions) to length 1."""
        norm = self._axes("ReduceL2", vectors, 1, keepdims=1)
        return self.node("Div", vectors, self._at_least(norm, LEAST_NORM))

    def _at_least(self, tensor: str, least: float) -> str:
        return self.node("Max", tensor, self.constant(np.float32(least)))

    def _axes(self, operator: str, tensor: str, axis: int, **attributes: Any) -> str:
        if self._opset >= AXES_AS_INPUT[operator]:
            return self.node(operator, tensor, self.whole([axis]), **attributes)
        return self.node(operator, tensor, axes=[axis], **attributes)


def new_head(model: Any, name: str) -> tuple[Grafter, str]:
    """Make room for a new output `embeddings`. Returns the grafter for its nodes, and the new name of a
    tensor that had this name, such as the graph's own output: `name` after a prefix."""
    prefix = free_prefix(model.graph)
    moved = f"{prefix}/{name}"
    rename(model.graph, OUTPUT, moved)
    return Grafter(model.graph, opset_of(model), prefix), moved


def declare_outputs(graph: Any, columns: int | str, others: Sequence[Any] = ()) -> None:
    """Make a graph return `embeddings`, float32 (n, columns), and `others`, in ONNX's own descriptions."""
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", columns]))
    graph.output.extend(others)


# Appends nodes that read token states; returns their outputs, in ONNX's own descriptions.
Maker: TypeAlias = Callable[[Grafter, str], Sequence[Any]]


def free_prefix(graph: Any) -> str:
    """A prefix that no name in the graph has, since a bundle's graph can be a source, too."""
    names = {name for node in graph.node for name in (node.name, *node.output)}
    names |= {tensor.name for tensor in graph.initializer}
    prefix = PREFIX
    while any(name.startswith(f"{prefix}/") for name in names):
        prefix += "_"
    return prefix


def rename(graph: Any, old: str, new: str) -> None:
    """Rename the tensor `old` everywhere in the graph and its subgraphs."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
        for subgraph in subgraphs(node):
            rename(subgraph, old, new)
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        if value.name == old:
            value.name = new
