"""What every kind of output defines, on disk, in the engine and on the wire."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


class DeclaredOutput(Protocol):
    """An output, as a manifest declares it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def similarity(self) -> str: ...
    @property
    def normalized(self) -> bool: ...
    @property
    def int8_limit(self) -> float | None: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class ColumnForm:
    """A column of an output.

    name: the output's name if it has a single column, otherwise NAME.PART.
    width: components of a row; 0: a row is one number.
    several: an item has several rows, at most `most` (0: one per unit).
    unit: rows have length 1.
    places: the integer column that gives the positions of this column's numbers in a long vector that is zero
        elsewhere; items are compared as such vectors.
    """

    name: str
    width: int = 0
    dtype: str = "float32"
    several: bool = False
    most: int = 0
    unit: bool = False
    places: str = ""


class OutputForm(ABC):
    """A kind of output, which known.py finds by its name."""

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def columns(cls, declared: DeclaredOutput) -> tuple[ColumnForm, ...]:
        """The columns that a graph gives for such an output."""

    @classmethod
    @abstractmethod
    def doubts(cls, declared: DeclaredOutput) -> Iterator[tuple[bool, str]]:
        """Checks of such an output in a manifest: for each possible fault, whether it is there, and its
        description."""
