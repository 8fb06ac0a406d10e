"""The interface of a vector store: a few calls that FAISS, Qdrant and pgvector all implement.

A store holds documents: an id, a text if it keeps texts, and a vector. All its vectors are of one space,
named in the store's own metadata. Ids are whole numbers or text, and are returned as they were given.
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
    similarity: how they are compared. For cosine, a store may normalise the vectors that it keeps.
    """

    space: str | None
    dimensions: int
    similarity: Similarity = "cosine"


@dataclass(frozen=True, slots=True)
class Document:
    """An id, its text if the store has it, and its payload if the store keeps one."""

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
    """Documents with their vectors: float32 (n, d), a row a document."""

    documents: Sequence[Document]
    vectors: Matrix

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def ids(self) -> list[Id]:
        """The documents' ids, in their order."""
        return [document.id for document in self.documents]


class Store(ABC):
    """A vector store that is open. Threads may share it; close it, or use it in `with`.

    name: what messages call it, without credentials.
    form: the space, dimensions and similarity of its vectors.
    keeps_payload: whether it keeps the payload of documents, too.
    beside: names of what else is stored with the documents, and does not move with them.

    Documents that others wrote may have no vector: `count`, `page` and `present` include them, the other
    calls do not.

    Raises Unavailable if the store cannot be reached; the same call may then be made again later.
    """

    name: str
    form: Form
    keeps_payload: ClassVar[bool] = False
    beside: Sequence[str] = ()

    @abstractmethod
    def identity(self) -> frozenset[Hashable]:
        """What this store consists of, under names that do not depend on its address.

        Two stores with one of them in common are the same place, at least in part.
        """

    @abstractmethod
    def count(self) -> int:
        """How many documents there are."""

    @abstractmethod
    def page(self, after: Id | None, size: int) -> list[Document]:
        """The next `size` documents after the id `after`, in the store's own order of ids; None: the first.

        The order stays the same while documents come and go, and `after` itself may be gone.
        """

    @abstractmethod
    def sample(self, count: int) -> list[Id]:
        """So many random ids, without repetition; all if there are fewer."""

    @abstractmethod
    def get(self, ids: Sequence[Id]) -> Rows:
        """The documents with these ids and their vectors, in the order of `ids`.

        Missing ones are left out, and those without a vector.
        """

    @abstractmethod
    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        """The texts of those of these documents that exist and have a vector."""

    @abstractmethod
    def search(self, vector: Matrix, k: int) -> list[Hit]:
        """The k documents nearest to `vector`, float32 (d,), the best first."""

    def present(self, ids: Sequence[Id]) -> set[Id]:
        """Those of these ids that exist, with a vector or without."""
        return set(self.texts(ids))

    def payloads(self, ids: Sequence[Id]) -> dict[Id, Mapping[str, Any]]:
        """The payloads of those of these documents that exist, if the store keeps payloads."""
        return {}

    def check_ids(self) -> None:  # noqa: B027 (most stores cannot hold others)
        """FailedPrecondition if paging by id would miss documents: some share an id, or have none."""

    def refusal(self, document: Document) -> str:
        """Why the store cannot hold a document; "" where it can."""
        if fault := id_fault(document.id):
            return fault
        fault = text_fault(document.text or "")
        return f"its text {fault}" if fault else ""

    def upsert(self, rows: Rows) -> None:
        """Write documents, replacing those with the same ids. On return they are as durable as the store is.

        InvalidArgument, and nothing is written, if a vector is not finite or not of the store's dimensions,
        or if the store cannot hold one of the documents. Whatever others keep with these documents stays:
        payload under other names, other columns, other vectors.
        """
        raise Unimplemented(f"{self.name} can only be read")

    def carry(self, documents: Sequence[Document]) -> None:  # noqa: B027 (most stores keep no payload)
        """Write the payloads of existing documents, and leave their vectors and texts."""

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
