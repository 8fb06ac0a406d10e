"""Makes nodes and constants of an ONNX graph, one after another, with unique names."""

from collections.abc import MutableSequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper


class Nodes:
    """Appends to `nodes` and `constants`; each method takes tensor names and returns the name of its result.

    prefix: begins all names; no other name in the graph may begin with it and a slash.
    """

    def __init__(self, prefix: str, nodes: MutableSequence[Any], constants: MutableSequence[Any]) -> None:
        self._prefix, self._nodes, self._constants, self._count = prefix, nodes, constants, 0

    def node(
        self,
        operator: str,
        *inputs: str,
        name: str = "",
        output: str = "",
        result: int = 0,
        results: int = 1,
        **attributes: Any,
    ) -> str:
        """A node; returns the output of which the number is `result`, of as many as `results`. The node and
        that output may each be named."""
        name = name or self._name(operator)
        outputs = [f"{name}/{number}" for number in range(results)]
        outputs[result] = output or name
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
        return outputs[result]

    def results(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node; returns its first `count` outputs."""
        name = self._name(operator)
        outputs = [f"{name}/{number}" for number in range(count)]
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
        return outputs

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """A constant tensor with this value."""
        name = self._name("constant")
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def whole(self, value: int | list[int]) -> str:
        """A constant int64 tensor."""
        return self.constant(np.array(value, np.int64))

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}/{self._count}/{what}"
