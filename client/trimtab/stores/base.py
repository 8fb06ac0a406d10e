"""The interface of a vector store, which FAISS, Qdrant and pgvector all implement.

A store holds documents. Each has an id, a vector, and a text if the store keeps texts. All vectors are of one
space, which the store's metadata names. Ids are integers or strings, and are returned as they were given.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import Unimplemented
from trimtab.kinds import Similarity
from trimtab.stores.ids import Id, id_fault, text_fault

Matrix: TypeAlias = NDArray[np.float32]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
PAGE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What all vectors of a store have in common.

    space: the digest that names their coordinate system; None if the store does not record it.
    similarity: how to compare them. For cosine, a store may normalise the vectors it keeps.
    """

    space: str | None
    dimensions: int
    similarity: Similarity = "cosine"


@dataclass(frozen=True, slots=True)
class Document:
    """An id, with its text if the store has it, and its payload if the store keeps payloads."""

    id: Id
    text: str | None
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found. Larger scores are nearer: distances are negated."""

    id: Id
    text: str | None
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Documents with their vectors: float32 (n, d), one row per document."""

    documents: Sequence[Document]
    vectors: Matrix

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def ids(self) -> list[Id]:
        """The documents' ids, in the same order."""
        return [document.id for document in self.documents]


class Store(ABC):
    """An open vector store. Threads may share it; close it, or use it in `with`.

    name: its name in messages, without credentials.
    form: the space, dimensions and similarity of its vectors.
    keeps_payload: whether it also keeps the documents' payloads.
    beside: names of other things stored with the documents, which do not move with them.

    Documents written by other programs may have no vector: `count`, `page` and `present` include them, the
    other calls do not.

    Calls raise Unavailable if the store cannot be reached; they may be repeated later.
    """

    name: str
    form: Form
    keeps_payload: ClassVar[bool] = False
    beside: Sequence[str] = ()

    @abstractmethod
    def identity(self) -> frozenset[Hashable]:
        """The parts of this store, under names that do not depend on its address.

        Two stores that have a part in common are the same place, at least in part.
        """

    @abstractmethod
    def count(self) -> int:
        """How many documents there are."""

    @abstractmethod
    def page(self, after: Id | None, size: int) -> list[Document]:
        """The next `size` documents after the id `after`, in the store's order of ids; None: from the start.

        The order stays the same while documents are added and deleted; `after` itself may be deleted.
        """

    @abstractmethod
    def sample(self, count: int) -> list[Id]:
        """`count` distinct random ids; all ids if there are fewer."""

    @abstractmethod
    def get(self, ids: Sequence[Id]) -> Rows:
        """The documents with these ids and their vectors, in the order of `ids`.

        Documents that are missing or have no vector are left out.
        """

    @abstractmethod
    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        """The texts of these documents, for those that exist and have a vector."""

    @abstractmethod
    def search(self, vector: Matrix, k: int) -> list[Hit]:
        """The k documents nearest to `vector`, float32 (d,), best first."""

    def present(self, ids: Sequence[Id]) -> set[Id]:
        """The subset of these ids that exist, with or without a vector."""
        return set(self.texts(ids))

    def payloads(self, ids: Sequence[Id]) -> dict[Id, Mapping[str, Any]]:
        """The payloads of the documents that exist, if the store keeps payloads."""
        return {}

    def check_ids(self) -> None:  # noqa: B027 (most stores cannot hold others)
        """FailedPrecondition if paging by id would miss documents because some share an id or have none."""

    def refusal(self, document: Document) -> str:
        """Why the store cannot hold a document; "" if it can."""
        if fault := id_fault(document.id):
            return fault
        fault = text_fault(document.text or "")
        return f"its text {fault}" if fault else ""

    def upsert(self, rows: Rows) -> None:
        """Write documents, replacing any with the same ids. On return they are as durable as the store is.

        Raises InvalidArgument and writes nothing if a vector is not finite, does not have the store's
        dimensions, or if the store cannot hold one of the documents. It keeps what other programs store with
        these documents: payload under other names, other columns, other vectors.
        """
        raise Unimplemented(f"{self.name} can only be read")

    def carry(self, documents: Sequence[Document]) -> None:  # noqa: B027 (most stores keep no payload)
        """Write the payloads of existing documents; their vectors and texts stay as they are."""

    def delete(self, ids: Collection[Id]) -> None:
        """Delete the documents with these ids; missing ones are ignored."""
        raise Unimplemented(f"{self.name} can only be read")

    def close(self) -> None:  # noqa: B027 (a file has nothing to close)
        """Close the store. Closing again does nothing."""

    def pages(self, size: int = PAGE) -> Iterator[list[Document]]:
        """All documents, page by page."""
        after: Id | None = None
        while documents := self.page(after, size):
            yield documents
            after = documents[-1].id

    def batches(self, size: int = PAGE) -> Iterator[Rows]:
        """All documents with their vectors, page by page."""
        for documents in self.pages(size):
            yield self.get([document.id for document in documents])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
