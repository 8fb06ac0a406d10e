"""What every kind of output has, wherever it is: on disk, in the engine, on the wire."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


class DeclaredOutput(Protocol):
    """An output, as a manifest has it."""

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

    name: the output's own where it has one column alone, else NAME.PART.
    width: components of a row; 0: a row is one number.
    several: an item has several rows, `most` of them (0: one a unit).
    unit: rows are of length 1.
    places: the column of whole numbers that says where the numbers of this one stand in a long vector, which
        is zero elsewhere: two items are compared as these.
    """

    name: str
    width: int = 0
    dtype: str = "float32"
    several: bool = False
    most: int = 0
    unit: bool = False
    places: str = ""


class OutputForm(ABC):
    """A kind of output. known.py finds it by its name."""

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def columns(cls, declared: DeclaredOutput) -> tuple[ColumnForm, ...]:
        """What a graph gives of such an output."""

    @classmethod
    @abstractmethod
    def doubts(cls, declared: DeclaredOutput) -> Iterator[tuple[bool, str]]:
        """Of what a manifest may not say of such an output: whether it says that, and what it is."""
