"""What a store keeps of one output: a dense, a sparse or a multi-vector for each document.

These are the checks and conversions that do not depend on the store.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.kinds import Similarity
from trimtab.stores.base import Form, Kind, Matrix, Query, Rows, Values
from trimtab.values import sparse
from trimtab.values.multi_vector import MultiVectors
from trimtab.values.similarity import normalised
from trimtab.values.sparse import Entries, SparseVectors

V = TypeVar("V", bound=Values)


class Column(ABC, Generic[V]):
    """One kind of output. Faults are worded to follow the name of the store or the output.

    similarities: by which its values can be compared. unsound: what is wrong where `sound` is False.
    """

    similarities: ClassVar[tuple[Similarity, ...]]
    unsound: ClassVar[str] = "holds NaN or infinity"

    def __init__(self, form: Form) -> None:
        self.form = form

    @abstractmethod
    def fault(self, values: Values, count: int) -> str:
        """Why these are not the values of `count` documents; "" if they are. Numbers are not looked at."""

    @abstractmethod
    def plain(self, values: V) -> V:
        """The same values in float32."""

    @abstractmethod
    def sound(self, values: V) -> NDArray[np.bool_]:
        """Which documents have a value that can be kept: (n,)."""

    @abstractmethod
    def items(self, values: V) -> Sequence[Any]:
        """The value of each document."""

    @abstractmethod
    def assembled(self, items: Sequence[Any]) -> V:
        """The values of several documents, of the value of each; None: it has none."""

    @abstractmethod
    def asked(self, query: Query) -> tuple[Any, str]:
        """A query in float32, as it is searched with; and why it is none, or ""."""


class DenseColumn(Column[Matrix]):
    """float32 (n, d)."""

    similarities = ("cosine", "dot", "euclidean", "manhattan")

    def fault(self, values: Values, count: int) -> str:
        if getattr(values, "shape", None) == (count, self.form.dimensions):
            return ""
        return f"takes {count} vectors of {self.form.dimensions} dimensions, got {_shown(values)}"

    def plain(self, values: Matrix) -> Matrix:
        return np.ascontiguousarray(values, np.float32)

    def sound(self, values: Matrix) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(values).all(axis=1), np.bool_)

    def items(self, values: Matrix) -> Sequence[Any]:
        return list(values)

    def assembled(self, items: Sequence[Any]) -> Matrix:
        found = np.full((len(items), self.form.dimensions), np.nan, np.float32)
        for row, item in enumerate(items):
            if item is not None:
                found[row] = item
        return found

    def asked(self, query: Query) -> tuple[Any, str]:
        if isinstance(query, tuple) or np.shape(query) != (self.form.dimensions,):
            return None, f"takes a vector of {self.form.dimensions} dimensions, got {_shown(query)}"
        vector = np.ascontiguousarray(query, np.float32)
        if not np.isfinite(vector).all():
            return None, "takes finite numbers, and this query holds NaN or infinity"
        # For cosine, lengths do not matter, and squares of extreme numbers do not fit into float32.
        return normalised(vector) if self.form.similarity == "cosine" else vector, ""


class SparseColumn(Column[SparseVectors]):
    """SparseVectors. For cosine, they are kept and searched at length 1, where it is the dot product."""

    similarities = ("dot", "cosine")

    def fault(self, values: Values, count: int) -> str:
        if not isinstance(values, SparseVectors):
            return f"takes SparseVectors, got {_shown(values)}"
        if (len(values), values.dimensions) != (count, self.form.dimensions):
            return (
                f"takes {count} sparse vectors of {self.form.dimensions} dimensions, got {len(values)} of "
                f"{values.dimensions}"
            )
        fault = sparse.fault(values)
        return fault and f"takes sparse vectors, and these {fault}"

    def plain(self, values: SparseVectors) -> SparseVectors:
        numbers: NDArray[np.float32] = values.values.astype(np.float32, copy=False)
        if self.form.similarity == "cosine":
            lengths = np.repeat(sparse.lengths(values), np.diff(values.indptr))
            numbers = np.divide(numbers, np.where(lengths > 0, lengths, 1), dtype=np.float32)
        return SparseVectors(values.indptr, values.indices, numbers, values.dimensions)

    def sound(self, values: SparseVectors) -> NDArray[np.bool_]:
        return np.array([np.isfinite(numbers).all() for _, numbers in self.items(values)], np.bool_)

    def items(self, values: SparseVectors) -> Sequence[Entries]:
        return [values[place] for place in range(len(values))]

    def assembled(self, items: Sequence[Any]) -> SparseVectors:
        entries = [((), ()) if item is None else item for item in items]
        indptr = np.zeros(len(entries) + 1, np.int64)
        np.cumsum([len(indices) for indices, _ in entries], out=indptr[1:])
        indices, numbers = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float32)
        for place, (where, what) in enumerate(entries):
            cut = slice(indptr[place], indptr[place + 1])
            indices[cut], numbers[cut] = where, what
        return SparseVectors(indptr, indices, numbers, self.form.dimensions)

    def asked(self, query: Query) -> tuple[Any, str]:
        if not isinstance(query, tuple) or len(query) != 2:
            return None, f"takes the pair (indices, values) of a sparse vector, got {_shown(query)}"
        indices, numbers = np.asarray(query[0]), np.asarray(query[1], np.float32)
        if len(indices) and indices.dtype.kind not in "iu":
            return None, f"takes whole numbers as indices, got {indices.dtype}"
        one = SparseVectors(np.array((0, len(indices)), np.int64), indices, numbers, self.form.dimensions)
        if fault := sparse.fault(one):
            return None, f"takes a sparse vector, and this query's {fault}"
        if not np.isfinite(numbers).all():
            return None, "takes finite numbers, and this query holds NaN or infinity"
        if self.form.similarity == "cosine":
            numbers = normalised(numbers)
        return (indices.astype(np.int32), numbers), ""


class MultiColumn(Column[MultiVectors]):
    """MultiVectors, with one row or more for each document."""

    similarities = ("cosine", "dot")
    unsound = "has no rows, or holds NaN or infinity"

    def fault(self, values: Values, count: int) -> str:
        if not isinstance(values, MultiVectors):
            return f"takes MultiVectors, got {_shown(values)}"
        width = values.vectors.shape[1]
        if values.dtype == "ubinary":
            return "takes numbers, got the bits of dtype ubinary"
        if (len(values), width) != (count, self.form.dimensions):
            wanted = f"takes {count} multi-vectors of width {self.form.dimensions}"
            return f"{wanted}, got {len(values)} of width {width}"
        return ""

    def plain(self, values: MultiVectors) -> MultiVectors:
        numbers = values.vectors.astype(np.float32, copy=False)
        if values.dtype == "int8":
            numbers = numbers * np.float32(values.scale)
        return MultiVectors(numbers, values.offsets)

    def sound(self, values: MultiVectors) -> NDArray[np.bool_]:
        # Without a row there is no largest product.
        return np.array([len(rows) and np.isfinite(rows).all() for rows in self.items(values)], np.bool_)

    def items(self, values: MultiVectors) -> Sequence[Matrix]:
        return [values[place] for place in range(len(values))]

    def assembled(self, items: Sequence[Any]) -> MultiVectors:
        rows = [np.empty((0, self.form.dimensions), np.float32) if item is None else item for item in items]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(each) for each in rows], out=offsets[1:])
        vectors = np.empty((int(offsets[-1]), self.form.dimensions), np.float32)
        for place, each in enumerate(rows):
            vectors[offsets[place] : offsets[place + 1]] = each
        return MultiVectors(vectors, offsets)

    def asked(self, query: Query) -> tuple[Any, str]:
        shape = np.shape(query) if not isinstance(query, tuple) else ()
        if len(shape) != 2 or not shape[0] or shape[1] != self.form.dimensions:
            return (
                None,
                f"takes an array (rows, {self.form.dimensions}) of 1 row or more, got {_shown(query)}",
            )
        rows = np.ascontiguousarray(query, np.float32)
        return (
            (rows, "") if np.isfinite(rows).all() else (None, "takes finite numbers, and this query is not")
        )


_COLUMNS: Mapping[Kind, type[Column[Any]]] = {
    "dense": DenseColumn,
    "sparse": SparseColumn,
    "multi_vector": MultiColumn,
}


def column(form: Form) -> Column[Any]:
    """The column of an output with this form."""
    return _COLUMNS[form.kind](form)


def _shown(given: object) -> str:
    shape = getattr(given, "shape", None)
    return f"an array of shape {shape}" if shape is not None else type(given).__name__


def similarity_of(kind: Kind, said: str) -> Similarity | None:
    """The similarity of a form, as encoders say it; None if values of this kind are not compared so.

    MaxSim is the sum of the largest dot products.
    """
    known = _COLUMNS[kind].similarities
    named = "dot" if kind == "multi_vector" and said == "maxsim" else said
    return next((similarity for similarity in known if similarity == named), None)


def chosen(rows: Rows, places: Sequence[int], outputs: Mapping[str, Form]) -> Rows:
    """Some of the rows of a store with these outputs."""
    documents = [rows.documents[place] for place in places]
    others = {}
    for name, values in rows.others.items():
        kept = column(outputs[name])
        items = kept.items(values)
        others[name] = kept.assembled([items[place] for place in places])
    return Rows(documents, rows.vectors[list(places)], others)
