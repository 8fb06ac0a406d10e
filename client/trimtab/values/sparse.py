"""Sparse vectors, of which only the nonzero components are kept: a CSR matrix, on the wire as well."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InvalidArgument
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.dense import FROM_PROTO, STORAGE

Entries: TypeAlias = tuple[NDArray[np.int32], NDArray[Any]]  # the indices of one vector, and their values

INDEX = np.dtype("<i4")
# How values may be stored.
NUMBERS = {"float32": pb.DATA_TYPE_FLOAT32, "float16": pb.DATA_TYPE_FLOAT16}


@dataclass(frozen=True, eq=False, slots=True)
class SparseVectors:
    """n vectors of `dimensions` components, most of which are 0.

    indptr: int64 (n + 1,); the entries of vector i are those from indptr[i] to indptr[i + 1].
    indices: int32, the position of each entry in its vector, rising within a vector.
    values: float32 or float16, the component at that position.

    `vectors[i]` is the pair (indices, values) of vector i, as views.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[Any]
    dimensions: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, place: int) -> Entries:
        count = len(self)
        if not -count <= place < count:
            raise IndexError(f"vector {place} of {count}")
        start, end = self.indptr[place % count], self.indptr[place % count + 1]
        return self.indices[start:end], self.values[start:end]

    def __iter__(self) -> Iterator[Entries]:
        return (self[place] for place in range(len(self)))

    def words(self, place: int, vocabulary: Sequence[str]) -> dict[str, float]:
        """The weights of vector `place` by their words, the largest first; `vocabulary` has the word of each
        component (see `read_vocabulary`). IndexError if it is too short."""
        indices, values = self[place]
        order = np.argsort(-values, kind="stable")
        return {
            vocabulary[at]: float(weight) for at, weight in zip(indices[order], values[order], strict=True)
        }

    def to_scipy(self) -> Any:
        """A scipy.sparse.csr_array (n, dimensions) over the same indices and values.

        scipy has no float16: such values are copied as float32. Needs scipy.
        """
        from scipy.sparse import csr_array  # only here: a client needs no scipy

        values = self.values.astype(np.float32, copy=False)
        # scipy wants one dtype for both, and would copy the indices to int64.
        indptr = self.indptr.astype(np.int32) if len(self.indices) < 2**31 else self.indptr
        return csr_array((values, self.indices, indptr), shape=(len(self), self.dimensions), copy=False)


def write(message: pb.Sparse, vectors: SparseVectors) -> None:
    """Fill an empty message with these vectors."""
    message.offsets = vectors.indptr.astype(INDEX).tobytes()
    message.indices = vectors.indices.astype(INDEX, copy=False).tobytes()
    message.values = vectors.values.astype(vectors.values.dtype.newbyteorder("<"), copy=False).tobytes()
    message.dtype = NUMBERS[vectors.values.dtype.name]
    message.dimensions = vectors.dimensions


def unpack(message: pb.Sparse) -> SparseVectors:
    """The vectors of a message, in memory of their own. InvalidArgument if it is no valid CSR matrix."""
    dtype = FROM_PROTO.get(message.dtype)
    if dtype is None or dtype not in NUMBERS:
        raise InvalidArgument(
            f"sparse vectors of the dtype {message.dtype}: a newer server? Upgrade the client"
        )
    found = SparseVectors(
        _array(message.offsets, INDEX, "offsets").astype(np.int64),
        _array(message.indices, INDEX, "indices").astype(np.int32),
        _array(message.values, STORAGE[dtype], "values").astype(dtype),
        message.dimensions,
    )
    if wrong := fault(found):
        raise InvalidArgument(f"sparse vectors {wrong}")
    return found


def fault(vectors: SparseVectors) -> str:
    """What is wrong with the layout of vectors, to follow "sparse vectors"; "" if nothing is."""
    indptr, indices = vectors.indptr, vectors.indices
    if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
        return f"have offsets that do not split {len(indices)} entries"
    if len(vectors.values) != len(indices):
        return f"have {len(indices)} indices and {len(vectors.values)} values"
    if len(indices) and (indices.min() < 0 or indices.max() >= vectors.dimensions):
        return f"have an index outside of their {vectors.dimensions} dimensions"
    falling = np.flatnonzero(np.diff(indices) <= 0) + 1  # allowed only where another vector begins
    return "" if np.isin(falling, indptr).all() else "have indices that do not rise"


def joined(parts: Sequence[SparseVectors]) -> SparseVectors:
    """The vectors of all parts, in order. They must have the same dimensions and dtype."""
    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0, *(len(part.indices) for part in parts)])
    indptr = [part.indptr[1:] + start for part, start in zip(parts, before, strict=False)]
    return SparseVectors(
        np.concatenate([np.zeros(1, np.int64), *indptr]),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
        parts[0].dimensions,
    )


def dot(query: Entries, vectors: SparseVectors) -> NDArray[np.float32]:
    """The dot product of a query with each vector: float32 (n,). Sums are in float64."""
    indices, weights = query
    if not len(indices):
        return np.zeros(len(vectors), np.float32)
    at = np.minimum(np.searchsorted(indices, vectors.indices), len(indices) - 1)
    products = np.where(indices[at] == vectors.indices, weights[at].astype(np.float64) * vectors.values, 0.0)
    return _sums(products, vectors.indptr)


def lengths(vectors: SparseVectors) -> NDArray[np.float32]:
    """The length of each vector: float32 (n,)."""
    return np.sqrt(_sums(vectors.values.astype(np.float64) ** 2, vectors.indptr))


def _sums(numbers: NDArray[np.float64], indptr: NDArray[np.int64]) -> NDArray[np.float32]:
    """The sum of each vector's numbers, in order, so that other vectors do not matter."""
    owners = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    sums = np.bincount(owners, weights=numbers, minlength=len(indptr) - 1)
    return sums.astype(np.float32)


def _array(content: bytes, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    if len(content) % dtype.itemsize:
        raise InvalidArgument(
            f"sparse vectors have {what} of {len(content)} bytes, no multiple of {dtype.itemsize}"
        )
    return np.frombuffer(content, dtype)
