"""What travels through the engine: plain data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.inputs import TokenTypes
from trimtab.kinds import Precision, Priority

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of a bundle, by its path in the bundle's folder, and what must be in it."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """One graph, as devices load it. Two loads of the same file are two models: identity is the key."""

    encoder: str
    version: int
    variant: str
    folder: Path  # of its bundle
    files: tuple[Stored, ...]  # the graph, and its external data
    inputs: tuple[str, ...]
    unpadded: bool  # its linear layers compute real tokens alone
    dimensions: int
    max_tokens: int
    pad_id: int
    types: TokenTypes = field(default_factory=TokenTypes)
    precision: Precision = "fp32"
    engines: tuple[Stored, ...] = ()  # of TensorRT

    @property
    def graph(self) -> Path:
        """Where the graph lies, to name it."""
        return self.folder / self.files[0].path if self.files else self.folder

    @property
    def digest(self) -> str:
        """Of its files."""
        return "".join(file.sha256 for file in self.files)


@dataclass(eq=False, slots=True)
class Item:
    """One text, waiting for a device, and for it whoever asked for that text: see sharing.py."""

    model: Model
    ids: Ids
    deadline: float | None  # the latest of its waiters', on the engine's clock; None: no deadline
    tenant: str = ""
    priority: Priority = "interactive"
    key: Any = None  # what makes another text the same
    waiters: dict[Any, list[int]] = field(default_factory=dict)  # tickets, and the rows it fills of each

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
        """Positions of the padded batch."""
        return len(self.items) * self.length

    @property
    def computed_tokens(self) -> int:
        """Tokens that the graph's linear layers compute."""
        return self.tokens if self.model.unpadded else self.padded_tokens
