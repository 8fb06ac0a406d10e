"""The interface of all kinds of output: refused or not, checked, finished, packed; and scored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InternalError, Unimplemented
from trimtab.kinds import Dtype, Similarity
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.column import Columns

F = TypeVar("F")  # a finished output

Scores = NDArray[np.float32]
Tensors: TypeAlias = Sequence[NDArray[Any]]


class OutputSpace(Protocol):
    """The space of an output, as far as it is known: its encoder's own, or one that adapters lead to."""

    @property
    def space(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    @property
    def similarity(self) -> Similarity | None:
        """None if unknown."""

    @property
    def normalized(self) -> bool | None:
        """None if unknown."""

    @property
    def int8_limit(self) -> float | None:
        """None if it was not calibrated, or is unknown."""

    @property
    def title(self) -> str:
        """What messages call it."""

    @property
    def uncalibrated(self) -> str:
        """Why there is no `int8_limit`."""

    @property
    def cure(self) -> str:
        """What to do if something is unknown."""


class Shape(msgspec.Struct, frozen=True):
    """How a request wants its outputs. dimensions, max_vectors (of an item): None for all."""

    dimensions: int | None = None
    dtype: Dtype = "float32"
    max_vectors: int | None = None


class TensorForm(NamedTuple):
    """A tensor of the KServe v2 protocol: its dtype, by numpy's name, and its shape; -1 is any size."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class OutputKind(ABC, Generic[F]):
    """A kind of output. known.py finds it by its name.

    form: the field of `trimtab.v1.Output` that carries it.
    several: an item may have several vectors, which requests can limit by `max_vectors`.
    """

    kind: ClassVar[str]
    form: ClassVar[str]
    several: ClassVar[bool] = False

    @abstractmethod
    def check(self, space: OutputSpace, shape: Shape) -> None:
        """Refuse what is not available there, naming the cure, before anything is computed."""

    def similarity(self, space: OutputSpace) -> str:
        """What clients are told about how items are compared there; "" if unknown."""
        return space.similarity or ""

    def reduced(
        self, columns: Columns, names: Sequence[str], space: OutputSpace, shape: Shape
    ) -> Iterator[Columns | None]:
        """The columns with at most `shape.max_vectors` vectors an item. The work is done in pieces: yields
        None after each, and the columns at the end. Kinds with `several` define it."""
        raise Unimplemented(f"{self.kind} has one vector an item")

    @abstractmethod
    def finish(self, columns: Columns, names: Sequence[str], space: OutputSpace, shape: Shape) -> F:
        """The columns of these names, which are finite, in the requested shape."""

    @abstractmethod
    def write(self, message: pb.Output, finished: F) -> None:
        """Fill in the message that carries it."""

    def tensor_forms(self, name: str, space: OutputSpace) -> Sequence[TensorForm]:
        """The tensors that carry an output of this name over KServe v2; none: it does not go over it."""
        return ()

    def tensors(self, finished: F) -> Tensors:
        """These tensors, in that order."""
        return ()

    def score(self, query: Columns, documents: Columns, names: Sequence[str], space: OutputSpace) -> Scores:
        """How near each document is to the one item of query: float32 (documents,), more is nearer.

        Raises Unimplemented if outputs of this kind are not compared.
        """
        raise Unimplemented(f"{space.title} gives {self.kind}, which cannot score candidates")

    def check_pairs(self, space: OutputSpace) -> None:
        """Raise Unimplemented if `score_pairs` cannot be asked, before anything is computed."""
        raise self._no_score(space)

    def score_pairs(self, columns: Columns, names: Sequence[str], space: OutputSpace) -> Scores:
        """The scores of items that are a query and a candidate each: float32 (items,), more is nearer.

        Raises Unimplemented if outputs of this kind are no scores.
        """
        raise self._no_score(space)

    def _no_score(self, space: OutputSpace) -> Unimplemented:
        return Unimplemented(f"{space.title} gives {self.kind}, which is no score of a pair")


def check_finite(columns: Columns, names: Sequence[str], which: Callable[[int], str]) -> None:
    """InternalError if a graph gave numbers that are not finite; `which` names an item in messages."""
    for name in names:
        column = columns[name]
        if column.finite:
            continue
        bad = next(row for row in range(len(column)) if not np.isfinite(column.item(row)).all())
        raise InternalError(f"the encoder gave no finite vector for {which(bad)}")
