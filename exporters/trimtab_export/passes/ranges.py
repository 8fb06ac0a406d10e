"""Measures the inputs of a graph's linear layers on real texts, channel by channel."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from trimtab.errors import ExportError
from trimtab_export.graph import editing
from trimtab_export.passes.linear import linears

Tokens: TypeAlias = Mapping[str, NDArray[np.int64]]
Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Range:
    """For each channel of a layer's input, (in,): the lowest value, at most 0; the highest, at least 0; the
    mean square. `top`: the mean square of each token's largest value. `packed`: the input is (tokens, in),
    without padding."""

    low: Floats
    high: Floats
    power: Floats
    top: float
    packed: bool

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and highest value of all channels."""
        return float(self.low.min()), float(self.high.max())

    @property
    def reach(self) -> Floats:
        """The largest absolute value of each channel."""
        reach: Floats = np.maximum(-self.low, self.high)
        return reach

    def divided(self, factors: Floats) -> "Range":
        """The range of the input with each channel divided by its factor."""
        return replace(self, low=self.low / factors, high=self.high / factors, power=self.power / factors**2)


def measure(graph: Path, batches: Iterable[Tokens]) -> dict[str, Range]:
    """The ranges of the inputs of a float32 graph's linear layers, by the inputs' names.

    Args:
        batches: of real texts, with as little padding as possible. Padding is not counted.

    Raises ExportError if a value is not finite.
    """
    model = onnx.load(str(graph), load_external_data=False)
    names = sorted({linear.input for linear in linears(model.graph)})
    session = editing.inner_session(model, names, graph.parent, threads=1)
    inputs = [value.name for value in session.get_inputs()]
    seen: dict[str, Range] = {}
    counted: dict[str, int] = {}
    for batch in batches:
        real = batch["attention_mask"] == 1
        values = session.run(names, {name: batch[name] for name in inputs})
        for name, value in zip(names, values, strict=True):
            rows = value[real] if value.ndim == 3 else value
            nothing = np.zeros(rows.shape[1], np.float32)
            before = seen.get(name, Range(nothing, nothing, nothing, 0.0, value.ndim == 2))
            count = counted.get(name, 0)
            counted[name] = count + len(rows)
            seen[name] = Range(
                np.minimum(before.low, rows.min(axis=0)),
                np.maximum(before.high, rows.max(axis=0)),
                (before.power * count + np.square(rows).sum(axis=0)) / counted[name],
                (before.top * count + float(np.square(rows.max(axis=1)).sum())) / counted[name],
                value.ndim == 2,
            )
    for name, each in seen.items():
        if not (np.isfinite(each.low).all() and np.isfinite(each.high).all()):
            raise ExportError(
                f"{graph.name} computes values that are not finite ({name}): its weights are broken"
            )
    return seen
