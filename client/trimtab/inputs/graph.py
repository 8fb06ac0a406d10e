"""What every kind of input defines: how a manifest declares it, and what a graph is fed for its items.

The server and the exporter's check feed graphs with the same code, so that what is served is what was
checked. This module needs only NumPy and msgspec, because a device's own process imports it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from trimtab.values.column import Columns


class DeclaredInput(Protocol):
    """An input, as a manifest declares it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def processor(self) -> object | None: ...
    @property
    def most_units(self) -> int: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Tried:
    """The results of trying a processor: the fewest units of an item, and the highest id."""

    fewest: int = 1
    highest: int = 0


class GraphInput(ABC):
    """A kind of input, as a graph takes it: plain settings, which are sent to other processes as JSON.

    Each kind is a frozen dataclass with its name in `kind`, by which known.py finds it.

    units: what the units of an item are called; they measure its cost and bound its size.
    idle: settings in a manifest that do not affect vectors, and so are not part of a space's name.
    """

    units: ClassVar[str]
    idle: ClassVar[frozenset[str]] = frozenset()

    kind: str
    names: tuple[str, ...]  # the graph's inputs
    fewest: int  # units of an item

    @classmethod
    @abstractmethod
    def doubts(cls, declared: DeclaredInput, names: Collection[str]) -> Iterator[tuple[bool, str]]:
        """Checks of such an input in a manifest, and of a graph that reads `names`: for each possible fault,
        whether it is there, and its description."""

    @classmethod
    def rehearse(cls, content: bytes, step: Callable[[], None]) -> Tried:
        """Try a processor's file, in a process that may be ended; `step` is called before each step.

        ValueError if it is not a processor of this kind.
        """
        return Tried()

    @property
    @abstractmethod
    def signature(self) -> dict[str, tuple[str, int]]:
        """For each of the graph's inputs, ONNX Runtime's type and the number of axes."""

    @abstractmethod
    def feeds(self, batch: Columns) -> Mapping[str, NDArray[Any]]:
        """The graph's inputs for a batch of prepared items."""

    @abstractmethod
    def sample(self, units: int) -> Mapping[str, NDArray[Any]]:
        """The arrays of an item with so many units, to try a graph with."""

    @abstractmethod
    def describe(self, units: Sequence[int]) -> str:
        """Describe samples of so many units, for people."""
