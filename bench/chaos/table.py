"""The results of a part, compared with its bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and its upper bound."""

    name: str
    value: float
    most: float

    @property
    def passed(self) -> bool:
        return self.value <= self.most


@dataclass(frozen=True, slots=True)
class PartResult:
    """All results of a part."""

    figures: Mapping[str, Any]
    bars: Sequence[Bar]

    def kept(self) -> dict[str, Any]:
        """For the history."""
        bars = {bar.name: {"value": bar.value, "most": bar.most, "passed": bar.passed} for bar in self.bars}
        return {"bars": bars, **self.figures}


def table(parts: Mapping[str, PartResult]) -> str:
    """A line for each bar."""
    lines = [f"{'part':<10}{'figure':<34}{'value':>10}{'bar':>10}"]
    for name, part in parts.items():
        for bar in part.bars:
            verdict = "pass" if bar.passed else "FAIL"
            lines.append(f"{name:<10}{bar.name:<34}{bar.value:>10.6g}{f'<= {bar.most:g}':>10}  {verdict}")
    return "\n".join(lines)
