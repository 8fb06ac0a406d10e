"""Finds the linear layers of an ONNX graph by their operators, and replaces nodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trimtab_export.graph.editing import drop_unused, replace_nodes
from trimtab_export.graph.head import opset_of

Floats: TypeAlias = NDArray[np.float32]

CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class Linear:
    """A product with constant weights (in, out), and the sum with a constant bias that follows it, if any."""

    product: Any
    weight: str
    bias: str | None
    output: str  # of the sum, if there is one

    @property
    def input(self) -> str:
        return str(self.product.input[0])


def linears(graph: Any) -> list[Linear]:
    """The linear layers of an ONNX graph, in its order: a MatMul with an initializer, and an Add after it."""
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


def steps(largest: Floats, most: int) -> Floats:
    """The scales with which values up to `largest` become whole numbers up to `most`."""
    return np.maximum(largest, 1e-8).astype(np.float32) / np.float32(most)


class Writer:
    """Changes a model in place: replaces nodes by others, which read new constants.

    Args:
        prefix: of the new names.
    """

    def __init__(self, model: Any, prefix: str) -> None:
        self._model, self._graph, self._prefix = model, model.graph, prefix
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.opset = opset_of(model)

    def name(self, of: str) -> str:
        """A new name, derived from the tensor `of`."""
        return f"{self._prefix}/{of}"

    def value(self, name: str) -> NDArray[Any]:
        """A constant of the graph."""
        value: NDArray[Any] = numpy_helper.to_array(self._constants[name])
        return value

    def constant(self, name: str, value: Any) -> str:
        """Add a constant to the graph, unless there is one of this name, and return its name."""
        name = self.name(name)
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
            self._graph.initializer.append(self._constants[name])
        return name

    def linears(self, layers: Sequence[Linear], make: Callable[[Linear], list[Any]]) -> None:
        """Replace each linear layer by `make(linear)`."""
        first = {linear.product.output[0]: linear for linear in layers}
        sums = {linear.output for linear in layers} - set(first)

        def instead(node: Any) -> list[Any]:
            if linear := first.get(node.output[0]):
                return make(linear)
            return [] if node.output[0] in sums else [node]

        self.nodes(instead)

    def nodes(self, instead: Callable[[Any], list[Any]]) -> None:
        """Replace each node by `instead(node)`, and drop what is no longer read."""
        replace_nodes(self._graph, [new for node in self._graph.node for new in instead(node)])
        drop_unused(self._graph)
        if all(entry.domain != CONTRIB for entry in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
