"""What a vector store is to Trimtab: a few calls that FAISS, Qdrant and pgvector all answer alike.

A store holds documents: an id, a text where it keeps one, and a vector. All its vectors are of one space,
which the store's own metadata names. Ids are whole numbers or text; a store gives back the ids that it was
given.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument, Unimplemented
from trimtab.kinds import Similarity

Id: TypeAlias = int | str
Matrix: TypeAlias = NDArray[np.float32]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
PAGE = 256
# What a whole number of 64 bits can be, with a sign or without.
_LEAST_ID, _MOST_ID = -(2**63), 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What all vectors of a store have in common.

    space: the digest that names their coordinate system; None where the store does not say.
    similarity: how they are compared. For cosine, a store may keep a vector at length 1 instead of its own.
    """

    space: str | None
    dimensions: int
    similarity: Similarity = "cosine"


@dataclass(frozen=True, slots=True)
class Document:
    """An id, its text where the store has it, and what else the store keeps of it, such as a payload."""

    id: Id
    text: str | None
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that a search found. The larger its score, the nearer: distances are negated."""

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
    beside: names of what else lies beside the documents, which moves with none of them.

    A document may be there without a vector, where others write into the store, too: `count`, `page` and
    `present` know of it, the other calls do not.

    Raises Unavailable where the store cannot be reached, and then the same call may be made again later.
    """

    name: str
    form: Form
    keeps_payload: ClassVar[bool] = False
    beside: Sequence[str] = ()

    @abstractmethod
    def identity(self) -> frozenset[Hashable]:
        """What this store is made of, by names that hold whatever its address says.

        Two stores that have one of them in common are one place, at least in part.
        """

    @abstractmethod
    def count(self) -> int:
        """How many documents there are."""

    @abstractmethod
    def page(self, after: Id | None, size: int) -> list[Document]:
        """The next `size` documents behind the id `after`, in the store's own order of ids; None: the first.

        The order stays the same while documents come and go, and `after` itself may be gone.
        """

    @abstractmethod
    def sample(self, count: int) -> list[Id]:
        """So many ids at random, each once; all, where there are fewer."""

    @abstractmethod
    def get(self, ids: Sequence[Id]) -> Rows:
        """The documents with these ids and their vectors, in the order of `ids`; the missing are left out.

        So are those that have no vector.
        """

    @abstractmethod
    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        """The texts of those of these ids that are there with a vector."""

    @abstractmethod
    def search(self, vector: Matrix, k: int) -> list[Hit]:
        """The k documents nearest to `vector`, float32 (d,), the best first."""

    def present(self, ids: Sequence[Id]) -> set[Id]:
        """Those of these ids that are there, with a vector or without."""
        return set(self.texts(ids))

    def payloads(self, ids: Sequence[Id]) -> dict[Id, Mapping[str, Any]]:
        """The payloads of those of these ids that are there, where the store keeps them."""
        return {}

    def check_ids(self) -> None:  # noqa: B027 (most stores cannot hold others)
        """FailedPrecondition where walking over the ids would miss documents: they have one id, or none."""

    def refusal(self, document: Document) -> str:
        """Why the store cannot hold a document; "" where it can."""
        if fault := id_fault(document.id):
            return fault
        fault = text_fault(document.text or "")
        return f"its text {fault}" if fault else ""

    def upsert(self, rows: Rows) -> None:
        """Write documents, over those that have the same ids. On return they are as durable as the store is.

        InvalidArgument, and nothing written, where a vector is not of the store's dimensions or not finite,
        or where the store cannot hold one of the documents. What else others keep of these documents in the
        same place stays: payload of other names, other columns, other vectors.
        """
        raise Unimplemented(f"{self.name} can only be read")

    def carry(self, documents: Sequence[Document]) -> None:  # noqa: B027 (most stores keep no payload)
        """Write the payloads of documents that are there, and leave their vectors and texts."""

    def delete(self, ids: Collection[Id]) -> None:
        """Delete the documents with these ids; those missing do not matter."""
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


def check_rows(store: Store, rows: Rows) -> Matrix:
    """The vectors as they are to be written; InvalidArgument names the document whose vector cannot be."""
    vectors = np.ascontiguousarray(rows.vectors, np.float32)
    wanted = (len(rows), store.form.dimensions)
    if vectors.shape != wanted:
        raise InvalidArgument(
            f"{store.name} takes {len(rows)} vectors of {store.form.dimensions} dimensions for {len(rows)} "
            f"documents, got an array of shape {vectors.shape}"
        )
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        raise InvalidArgument(
            f"the vector of document {rows.documents[first].id!r} holds NaN or infinity, and "
            f"{int(bad.sum())} of {len(rows)} do; {store.name} was not changed. Embed the text again"
        )
    for document in rows.documents:
        if refusal := store.refusal(document):
            raise InvalidArgument(
                f"{store.name} cannot hold document {document.id!r}: {refusal}. It was not changed"
            )
    if len(set(rows.ids)) != len(rows):
        raise InvalidArgument(f"two documents for {store.name} have the same id; give each id once")
    return vectors


def check_query(store: Store, vector: Matrix, k: int) -> Matrix:
    """The query as float32 (d,), for cosine of length 1; InvalidArgument where it does not fit the store."""
    query = np.ascontiguousarray(vector, np.float32)
    if query.shape != (store.form.dimensions,):
        raise InvalidArgument(
            f"{store.name} is searched with a vector of {store.form.dimensions} dimensions, "
            f"got an array of shape {query.shape}"
        )
    if not np.isfinite(query).all():
        raise InvalidArgument(f"the query for {store.name} holds NaN or infinity")
    if k < 1:
        raise InvalidArgument(f"k is {k}; ask for at least 1")
    # Lengths do not count then, and squares of very large and small numbers are no float32.
    return normalised(query) if store.form.similarity == "cosine" else query


def files_identity(*paths: Path) -> frozenset[Hashable]:
    """Of those of these files and folders that are there, through links of either kind: device and inode."""
    found = [path.stat() for path in paths if path.exists()]
    return frozenset(("file", each.st_dev, each.st_ino) for each in found)


def check_id(id: object, where: str) -> Id:
    """`id` where it can be one."""
    if fault := id_fault(id):
        raise InvalidArgument(f"{where}: {fault}")
    if not isinstance(id, int | str):
        raise TypeError("id_fault lets only whole numbers and text pass")
    return id


def id_fault(id: object) -> str:
    """Why this is no id; "" where it is one: a whole number of 64 bits, or text that UTF-8 can carry."""
    if isinstance(id, bool) or not isinstance(id, int | str):
        return f"{id!r} is {type(id).__name__}; an id is a whole number or text"
    if isinstance(id, int):
        fits = _LEAST_ID <= id < _MOST_ID
        return "" if fits else f"{id} is no whole number from -2^63 to 2^64 - 1; use text for such an id"
    fault = text_fault(id)
    return f"{id!r} {fault}" if fault else ""


def text_fault(text: str) -> str:
    """What keeps text from being written anywhere; "" where nothing does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half of a surrogate pair at character {error.start}, which UTF-8 cannot carry"
    return ""


def check_form(found: Form, wanted: Form, name: str) -> None:
    """FailedPrecondition where a store that exists is not of the form that its writer wants."""
    if found.space != wanted.space:
        raise FailedPrecondition(
            f"{name} holds vectors of space {found.space or 'unknown'}, and those of space {wanted.space} "
            "must not be mixed with them; name another store"
        )
    if found != wanted:
        raise FailedPrecondition(
            f"{name} holds {found.dimensions} dimensions compared by {found.similarity}, the vectors have "
            f"{wanted.dimensions} and are compared by {wanted.similarity}; name another store"
        )


def check_apart(source: Store, target: Store) -> None:
    """ConfigError where writing into the target would change the source, whatever both are called."""
    if source.identity() & target.identity():
        raise ConfigError(
            f"{target.name} and {source.name} are one place, or share a part: what is written into the one "
            "would change the other. Nothing was written; name another store for the new vectors"
        )


def space_of(recorded: object, claimed: str | None, name: str) -> str | None:
    """The space that a store records, or that its address claims where the store records none."""
    if recorded is None:
        return claimed or None
    if claimed and claimed != recorded:
        raise FailedPrecondition(
            f"{name} is recorded as of space {recorded}, and its address says {claimed}; leave out space="
        )
    return str(recorded)


def normalised(vectors: Matrix) -> Matrix:
    """Vectors (n, d) at length 1; those of length 0 as they are."""
    given = np.asarray(vectors, np.float32)
    # As float64: the squares of very small and of very large numbers are not zero and infinity there.
    lengths = np.sqrt(np.einsum("...i,...i->...", given, given, dtype=np.float64))[..., None]
    fresh = np.empty(given.shape, np.float32)
    with np.errstate(invalid="ignore"):  # infinity becomes NaN
        return np.divide(given, np.where(lengths > 0, lengths, 1), out=fresh, casting="same_kind")


def scores(query: Matrix, vectors: Matrix, similarity: Similarity) -> NDArray[np.float32]:
    """How near each of vectors (n, d) is to query (d,): (n,), the larger the nearer."""
    if similarity in {"cosine", "dot"}:
        if similarity == "cosine":
            query, vectors = normalised(query), normalised(vectors)
        near = vectors @ query
    elif similarity == "euclidean":
        near = -np.linalg.norm(vectors - query, axis=1)
    else:
        near = -np.abs(vectors - query).sum(axis=1)
    found: NDArray[np.float32] = near.astype(np.float32, copy=False)
    return found


def best(near: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """The places of the k largest scores, the largest first; the earlier place where they are equal."""
    many = k < len(near)
    kept = np.flatnonzero(near >= np.partition(near, -k)[-k]) if many else np.arange(len(near))
    order: NDArray[np.intp] = kept[np.argsort(-near[kept], kind="stable")][:k]
    return order


def nearest(
    query: Matrix, vectors: Iterable[Matrix], similarity: Similarity, k: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Scores and rows of the k nearest of all vectors, which come in parts (n, d), the best first.

    Those whose score is not finite are near to nothing, and left out.
    """
    near = np.concatenate([scores(query, part, similarity) for part in vectors])
    rows = np.flatnonzero(np.isfinite(near))
    chosen = rows[best(near[rows], k)]
    return near[chosen], chosen


def order(id: Id) -> tuple[bool, int, str]:
    """The key by which ids are ordered where a store leaves it to us: numbers, then text."""
    return (True, 0, id) if isinstance(id, str) else (False, id, "")
