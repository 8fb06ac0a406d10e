"""What travels through the engine: plain frozen data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Priority = Literal["interactive", "bulk"]


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """One graph, as devices load it. Two loads of the same file are two models: identity is the key."""

    encoder: str
    version: int
    variant: str
    graph: Path
    inputs: tuple[str, ...]
    dimensions: int
    max_tokens: int
    pad_id: int


@dataclass(frozen=True, eq=False, slots=True)
class Item:
    """One text, waiting for a device. `ticket` and `row` say where its vector belongs."""

    model: Model
    ids: Ids
    ticket: Any  # the engine's own: nobody else looks inside
    row: int
    deadline: float | None  # on the engine's clock; None: no deadline
    tenant: str = ""
    priority: Priority = "interactive"

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """Items of one model that run together, padded to the longest of them."""

    model: Model
    items: tuple[Item, ...]

    @property
    def length(self) -> int:
        """Tokens of the longest item: the width of the padded batch."""
        return max(item.length for item in self.items)

    @property
    def tokens(self) -> int:
        """Real tokens, padding left out."""
        return sum(item.length for item in self.items)

    @property
    def padded_tokens(self) -> int:
        """Tokens that the device computes."""
        return len(self.items) * self.length
