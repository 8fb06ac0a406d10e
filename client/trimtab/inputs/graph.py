"""What every kind of input has: how a manifest declares it, and what a graph is fed of its items.

The server and the exporter's check feed graphs by the same code, so that what was checked is what is served.
It needs NumPy and msgspec alone: a device's own process imports it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from trimtab.values.column import Columns


class DeclaredInput(Protocol):
    """An input, as a manifest has it."""

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
    """What was seen of a processor when it was tried: the fewest units of an item, and the highest id."""

    fewest: int = 1
    highest: int = 0


class GraphInput(ABC):
    """A kind of input, as a graph takes it: plain settings, which go to other processes as JSON.

    Each kind is a frozen dataclass that has its name in `kind`; known.py finds it by that.

    units: what the units of an item are called, that it costs and is bounded by.
    idle: settings in a manifest that place no vector, and so are no part of a space's name.
    """

    units: ClassVar[str]
    idle: ClassVar[frozenset[str]] = frozenset()

    kind: str
    names: tuple[str, ...]  # the graph's inputs
    fewest: int  # units of an item

    @classmethod
    @abstractmethod
    def doubts(cls, declared: DeclaredInput, names: Collection[str]) -> Iterator[tuple[bool, str]]:
        """Of what a manifest may not say of such an input, and of a graph that reads `names`: whether it says
        that, and what it is."""

    @classmethod
    def rehearse(cls, content: bytes, step: Callable[[], None]) -> Tried:
        """Try a processor's file, in a process that may be ended; `step` is called before each of its steps.

        ValueError where it is none of this kind.
        """
        return Tried()

    @property
    @abstractmethod
    def signature(self) -> dict[str, tuple[str, int]]:
        """Of each of the graph's inputs ONNX Runtime's type and the number of axes."""

    @abstractmethod
    def feeds(self, batch: Columns) -> Mapping[str, NDArray[Any]]:
        """The graph's inputs for a batch of items, as they were prepared."""

    @abstractmethod
    def sample(self, units: int) -> Mapping[str, NDArray[Any]]:
        """The arrays of an item of so many units, to try a graph with."""

    @abstractmethod
    def describe(self, units: Sequence[int]) -> str:
        """What samples of so many units are, for people."""
