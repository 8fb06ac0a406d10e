"""Nodes and constants of an ONNX graph, made one after another under names that nothing else has."""

from collections.abc import MutableSequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper


class Nodes:
    """Appends to `nodes` and `constants`; each method takes names of tensors and returns its result's.

    prefix: of all names; no other name of the graph may begin with it and a slash.
    """

    def __init__(self, prefix: str, nodes: MutableSequence[Any], constants: MutableSequence[Any]) -> None:
        self._prefix, self._nodes, self._constants, self._count = prefix, nodes, constants, 0

    def node(self, operator: str, *inputs: str, name: str = "", output: str = "", **attributes: Any) -> str:
        """A node of one output; either may be given a name of its own."""
        name = name or self._name(operator)
        result = output or name
        self._nodes.append(helper.make_node(operator, list(inputs), [result], name=name, **attributes))
        return result

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """A tensor of this value."""
        name = self._name("constant")
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def whole(self, value: int | list[int]) -> str:
        """A tensor of whole numbers, int64."""
        return self.constant(np.array(value, np.int64))

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}/{self._count}/{what}"
