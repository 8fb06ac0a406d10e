"""The common form of every rung, computed here in NumPy and exported to ONNX.

z = x[:, first:last], its rows scaled to length 1 if `unit_input`
y = z W + b + relu(z U + c) V + shift[group], scaled to length 1 if the target's vectors are
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from trimtab.errors import AdapterError
from trimtab_export import runtime
from trimtab_export.adapters.metrics import unit
from trimtab_export.graph.nodes import Nodes

Floats: TypeAlias = NDArray[np.float32]
Groups: TypeAlias = NDArray[np.int64]

OPSET = 18
IR_VERSION = 10
TOLERANCE = 1e-4  # of the graph against the map, relative to the length of the vectors
SMALL = 1e-12


@dataclass(frozen=True, slots=True)
class Hidden:
    """A hidden layer parallel to the linear map: U (k, h), c (h,), V (h, d_out)."""

    inward: Floats
    bias: Floats
    outward: Floats


@dataclass(frozen=True, slots=True)
class Map:
    """A map of rows of `width` columns to rows of `d_out`.

    weight: W (k, d_out), where k columns are read; None: the identity.
    shift: b (d_out,).
    groups: (1 + groups, d_out), added by group; its first row is for rows of no known group.
    """

    width: int
    first: int
    last: int
    unit_input: bool
    unit_output: bool
    shift: Floats
    weight: Floats | None = None
    hidden: Hidden | None = None
    groups: Floats | None = None

    def __call__(self, rows: Floats, group: Groups | None = None) -> Floats:
        """The adapted rows, float32 (n, d_out)."""
        read = rows[:, self.first : self.last]
        if self.unit_input:
            read = unit(read)
        result = (read if self.weight is None else read @ self.weight) + self.shift
        if self.hidden is not None:
            inner = np.maximum(read @ self.hidden.inward + self.hidden.bias, 0)
            result = result + inner @ self.hidden.outward
        if self.groups is not None:
            result = result + self.groups[np.zeros(len(rows), np.int64) if group is None else group]
        result = result.astype(np.float32)
        return unit(result) if self.unit_output else result

    def scaled(self, factor: float) -> "Map":
        """The same map with outputs `factor` times as long; unchanged if they have length 1."""
        if self.unit_output:
            return self
        weight = np.eye(self.last - self.first, dtype=np.float32) if self.weight is None else self.weight
        hidden = None
        if self.hidden is not None:
            hidden = replace(self.hidden, outward=_float(self.hidden.outward * factor))
        return replace(
            self,
            weight=_float(weight * factor),
            shift=_float(self.shift * factor),
            hidden=hidden,
            groups=None if self.groups is None else _float(self.groups * factor),
        )


def write(map: Map, path: Path) -> None:
    """The map as an ONNX graph at `path`."""
    nodes: list[Any] = []
    constants: list[Any] = []
    _compute(map, Nodes("map", nodes, constants))
    nodes[-1].output[0] = "adapted"
    inputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", map.width])]
    if map.groups is not None:
        inputs.append(helper.make_tensor_value_info("group", TensorProto.INT64, ["n"]))
    output = helper.make_tensor_value_info("adapted", TensorProto.FLOAT, ["n", map.shift.shape[0]])
    graph = helper.make_graph(nodes, "adapter", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _compute(map: Map, make: Nodes) -> None:
    """The nodes that make the adapted rows of `vectors` and `group`; the last one gives them."""
    read = "vectors"
    if (map.first, map.last) != (0, map.width):
        bounds = [make.whole([number]) for number in (map.first, map.last, 1)]
        read = make.node("Slice", read, *bounds)
    if map.unit_input:
        read = _unit_node(make, read)
    shift = make.constant(_float(map.shift))
    if map.weight is None:
        result = make.node("Add", read, shift)
    else:
        result = make.node("Gemm", read, make.constant(_float(map.weight)), shift)
    if map.hidden is not None:
        inward, bias = make.constant(_float(map.hidden.inward)), make.constant(_float(map.hidden.bias))
        inner = make.node("Relu", make.node("Gemm", read, inward, bias))
        result = make.node("Gemm", inner, make.constant(_float(map.hidden.outward)), result)
    if map.groups is not None:
        result = make.node("Add", result, make.node("Gather", make.constant(_float(map.groups)), "group"))
    if map.unit_output:
        _unit_node(make, result)


def check(map: Map, path: Path, rows: Floats) -> None:
    """AdapterError if the graph at `path` does not return the map's own vectors for `rows`."""
    group = None if map.groups is None else np.arange(len(rows)) % len(map.groups)
    expected = map(rows, group)
    inputs = {"vectors": rows} if group is None else {"vectors": rows, "group": group}
    (found,) = runtime.session(path, threads=1).run(["adapted"], inputs)
    scale = max(float(np.abs(expected).max()), SMALL)
    worst = float(np.abs(found - expected).max()) / scale
    if not worst <= TOLERANCE:
        raise AdapterError(
            f"the adapter's graph differs from the fitted map by {worst:.1e} of its largest component; at "
            f"most {TOLERANCE:.0e} is allowed. The map is ill-conditioned: give more texts"
        )


def _unit_node(make: Nodes, rows: str) -> str:
    """rows / max(|row|, SMALL), with operators that every runtime has."""
    square = make.node("ReduceSumSquare", rows, make.whole([1]), keepdims=1)
    length = make.node("Max", make.node("Sqrt", square), make.constant(np.float32(SMALL)))
    return make.node("Div", rows, length)


def _float(values: NDArray[Any]) -> Floats:
    return values.astype(np.float32)
