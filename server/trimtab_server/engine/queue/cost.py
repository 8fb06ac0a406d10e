"""What a run of a graph costs, in four figures."""

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import msgspec

LEAST = 1e-9  # seconds; a graph that costs nothing would make the batcher divide by it
Positive: TypeAlias = Annotated[float, msgspec.Meta(ge=LEAST)]
NotNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0)]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds for the run itself, for each unit (a token, if the items are texts), for each position of
    padding, and for each pair of positions that attention compares. In a graph without padding, positions
    cost almost nothing. The bounds are for costs read from files."""

    run_seconds: Positive
    unit_seconds: Positive
    pad_seconds: NotNegative = 0.0
    pair_seconds: NotNegative = 0.0

    def seconds(self, items: int, units: int, longest: int) -> float:
        """How long a run of so many items takes, with `units` in total, each padded to `longest`."""
        return self.run_seconds + self.unit_seconds * self.units(items, units, longest)

    def units(self, items: int, units: int, longest: int) -> float:
        """The same without the run itself, in units: the real ones, and what padding and pairs cost."""
        positions = items * longest
        extra = self.pad_seconds * (positions - units) + self.pair_seconds * positions * longest
        return units + extra / self.unit_seconds

    @property
    def run_units(self) -> float:
        """The fixed cost of a run, in units."""
        return self.run_seconds / self.unit_seconds
