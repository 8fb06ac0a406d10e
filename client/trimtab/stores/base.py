"""The interface of a vector store, which FAISS, Qdrant and pgvector all implement.

A store holds documents. Each has an id, a vector, and a text if the store keeps texts. All vectors are of one
space, which the store's metadata names. Ids are integers or strings, and are returned as they were given.

A store may keep several outputs of encoders for each document, such as a sparse vector beside the dense one.
Each is kept and searched by itself, under its output's name, and has a space of its own. The first output is
dense.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InvalidArgument, Unimplemented
from trimtab.kinds import Similarity
from trimtab.stores.ids import Id, id_fault, text_fault
from trimtab.values.multi_vector import MultiVectors
from trimtab.values.sparse import Entries, SparseVectors

Matrix: TypeAlias = NDArray[np.float32]
Kind = Literal["dense", "sparse", "multi_vector"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DENSE: Kind = "dense"
# One output of several documents: (n, d), or n sparse or multi-vectors. And of one text, to search with:
# (d,), the indices and values of a sparse vector, or the (rows, width) of a multi-vector.
Values: TypeAlias = Matrix | SparseVectors | MultiVectors
Query: TypeAlias = Matrix | Entries
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
PAGE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What all vectors of one output have in common.

    space: the digest that names their coordinate system; None if the store does not record it.
    dimensions: components of a vector; of multi-vectors, of each of their vectors.
    similarity: how to compare them. For cosine, a store may normalise the dense vectors it keeps. Sparse
        vectors are compared by their dot product ("dot") or by cosine, multi-vectors by the sum of each query
        row's largest dot product (MaxSim). For rows of length 1, that is what cosine means, too.
    kind: dense, sparse or multi_vector.
    """

    space: str | None
    dimensions: int
    similarity: Similarity = "cosine"
    kind: Kind = DENSE


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
    """Documents with their vectors: float32 (n, d), one row per document.

    others: by name, the values of the store's other outputs, one item per document. If a document was written
        without one of them, by another program, its sparse vector is empty, and its multi-vector has no rows.
    """

    documents: Sequence[Document]
    vectors: Matrix
    others: Mapping[str, Values] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def ids(self) -> list[Id]:
        """The documents' ids, in the same order."""
        return [document.id for document in self.documents]


class Store(ABC):
    """An open vector store. Threads may share it; close it, or use it in `with`.

    name: its name in messages, without credentials.
    form: the space, dimensions and similarity of its vectors, which are those of its first output.
    output: that output's name. others: by name, the forms of its other outputs.
    keeps_payload: whether it also keeps the documents' payloads.
    beside: names of other things stored with the documents, which do not move with them.

    Documents written by other programs may have no vector: `count`, `page` and `present` include them, the
    other calls do not.

    Calls raise Unavailable if the store cannot be reached; they may be repeated later.
    """

    name: str
    form: Form
    output: str = DENSE
    others: Mapping[str, Form] = {}
    keeps_payload: ClassVar[bool] = False
    beside: Sequence[str] = ()

    @property
    def outputs(self) -> dict[str, Form]:
        """The forms of all outputs by name, the first output first."""
        return {self.output: self.form, **self.others}

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

    def search_output(self, output: str, query: Query, k: int) -> list[Hit]:
        """The k documents nearest to a query by one of the store's outputs, best first.

        query: what the encoder makes of the query as this output: float32 (d,) for a dense one, the pair
            (indices, values) for a sparse one, float32 (rows, width) for multi-vectors.

        A document is found by a sparse vector only if its score is above 0. InvalidArgument if the store does
        not have the output, or the query does not fit it.
        """
        if output != self.output:
            raise unknown_output(self, output)
        return self.search(query, k)  # type: ignore[arg-type] # check_query refuses others

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
        dimensions, if an output of the store is missing, or if the store cannot hold one of the documents. It
        keeps what other programs store with these documents: payload under other names, other columns, other
        vectors.
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


def unknown_output(store: Store, output: str) -> InvalidArgument:
    """The error for an output that a store does not keep."""
    return InvalidArgument(
        f"{store.name} has no output {output!r}; it has {', '.join(map(repr, store.outputs))}"
    )
