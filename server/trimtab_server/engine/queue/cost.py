"""What a run of a graph costs, in four figures."""

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import msgspec

LEAST = 1e-9  # seconds; a graph that costs nothing would make the batcher divide by it
Positive: TypeAlias = Annotated[float, msgspec.Meta(ge=LEAST)]
NotNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0)]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a run: of the run itself, of each unit (of texts, a token), of each position of padding, and
    of each pair of positions that the attention compares. A graph without padding has almost nothing to pay
    for it. The bounds are for what is read from files."""

    run_seconds: Positive
    unit_seconds: Positive
    pad_seconds: NotNegative = 0.0
    pair_seconds: NotNegative = 0.0

    def seconds(self, items: int, units: int, longest: int) -> float:
        """What a run of so many items takes, of `units` altogether, padded to `longest` each."""
        return self.run_seconds + self.unit_seconds * self.units(items, units, longest)

    def units(self, items: int, units: int, longest: int) -> float:
        """The same without the run itself, and in units: the real ones and what the others cost."""
        positions = items * longest
        extra = self.pad_seconds * (positions - units) + self.pair_seconds * positions * longest
        return units + extra / self.unit_seconds

    @property
    def run_units(self) -> float:
        """The fixed cost of a run, in units."""
        return self.run_seconds / self.unit_seconds
