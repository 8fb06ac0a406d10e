"""Several vectors for each item, such as one for each token of a text, and MaxSim, which compares items.

MaxSim (Khattab and Zaharia 2020, ColBERT): for each vector of the query, its largest similarity to any vector
of the document; the sum of these.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InvalidArgument
from trimtab.kinds import Dtype
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import dense

Rows: TypeAlias = NDArray[Any]
Offsets: TypeAlias = NDArray[np.int64]

# How many similarities are computed at a time: they are the memory that MaxSim needs.
_PIECE = 1 << 20
WIRE_OFFSETS = np.dtype("<i4")


@dataclass(frozen=True, slots=True, eq=False)
class MultiVectors:
    """The vectors of n items, those of each item after those of the item before.

    vectors: (rows, width) of `dtype`: float32, float16, int8, or uint8 with dtype "ubinary", where the width
        is the number of bytes, eight signs to each.
    offsets: int64 (n + 1,); the rows of item i are those from offsets[i] to offsets[i + 1].
    scale: for int8, the value of one step: `vectors * scale`; otherwise 0.
    """

    vectors: Rows
    offsets: Offsets
    dtype: Dtype = "float32"
    scale: float = 0.0

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.offsets) - 1

    def __getitem__(self, item: int) -> Rows:
        """The rows of an item, (rows, width): a view. IndexError if there is no such item."""
        place = item + len(self) if item < 0 else item
        if not 0 <= place < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        rows: Rows = self.vectors[self.offsets[place] : self.offsets[place + 1]]
        return rows

    def __iter__(self) -> Iterator[Rows]:
        """The rows of each item."""
        return (self[item] for item in range(len(self)))

    def only(self, item: int) -> "MultiVectors":
        """A view of one item, such as a query."""
        rows = self[item]
        return MultiVectors(rows, np.array((0, len(rows)), np.int64), self.dtype, self.scale)

    def maxsim(self, documents: "MultiVectors") -> NDArray[np.float32]:
        """How near each of the documents (m) is to each of these items, the queries (n): (n, m).

        See the function `maxsim`.
        """
        found = np.empty((len(self), len(documents)), np.float32)
        for row in range(len(self)):
            found[row] = maxsim(self.only(row), documents)
        return found


def joined(parts: Sequence[MultiVectors]) -> MultiVectors:
    """The items of all parts, which must have one dtype, width and scale."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.vectors) for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
    return MultiVectors(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        parts[0].dtype,
        parts[0].scale,
    )


def maxsim(query: MultiVectors, documents: MultiVectors) -> NDArray[np.float32]:
    """How near each document (n) is to the query, which is one item: float32 (n,), larger is nearer.

    Two rows are compared by their dot product, which is the cosine for rows of length 1. int8 rows count with
    their scale. If both sides are ubinary, two rows are compared by 1 - 2 * (differing bits) / (all bits):
    the cosine of their signs. If only the documents are ubinary, their bits count as +1 and -1, divided by
    the length of such a row. A document without rows is infinitely far: minus infinity.

    InvalidArgument if the query is not one item, or the rows differ in width.
    """
    if len(query) != 1:
        raise InvalidArgument(f"MaxSim compares one query with documents, and these are {len(query)} queries")
    _check_widths(query, documents)
    found = np.empty(len(documents), np.float32)
    rows = max(1, _PIECE // max(1, len(query.vectors), documents.vectors.shape[1]))
    both_bits = query.dtype == documents.dtype == "ubinary"
    asked = query.vectors if both_bits else _numbers(query, query.vectors)
    for start, end in _pieces(documents.offsets, rows):
        first, last = documents.offsets[start], documents.offsets[end]
        part = documents.vectors[first:last]
        near = _bit_cosines(asked, part) if both_bits else asked @ _numbers(documents, part).T
        found[start:end] = best_sums(near, documents.offsets[start : end + 1] - first)
    return found


def best_sums(near: NDArray[np.float32], offsets: Offsets) -> NDArray[np.float32]:
    """The sums over query rows of the largest similarity in each document: (n,).

    near: similarities, float32 (query rows, document rows). offsets: (n + 1,), of the documents' rows.
    """
    found = np.full(len(offsets) - 1, -np.inf, np.float32)
    there = np.flatnonzero(np.diff(offsets))  # reduceat would take the next row for a document without any
    if len(there):
        best = np.maximum.reduceat(near, offsets[there], axis=1) if len(near) else near[:, : len(there)]
        found[there] = best.sum(axis=0)
    return found


def _numbers(given: MultiVectors, rows: Rows) -> NDArray[np.float32]:
    """Some of the rows as float32 (rows, components); bits as signs in rows of length 1."""
    if given.dtype != "ubinary":
        found: NDArray[np.float32] = rows.astype(np.float32, copy=False)
        return found * np.float32(given.scale) if given.dtype == "int8" else found
    signs = np.unpackbits(rows, axis=1).astype(np.float32) * 2 - 1
    return signs / np.float32(max(1, signs.shape[1]) ** 0.5)


def _bit_cosines(query: Rows, documents: Rows) -> NDArray[np.float32]:
    bits = max(1, 8 * query.shape[1])
    differ = np.zeros((len(query), len(documents)), np.int32)
    for byte in range(query.shape[1]):  # one at a time: all together would take a byte each
        differ += np.bitwise_count(query[:, byte, None] ^ documents[None, :, byte])
    return 1 - differ.astype(np.float32) * np.float32(2 / bits)


def _pieces(offsets: Offsets, rows: int) -> Iterator[tuple[int, int]]:
    """Documents from and to, so that each piece has about so many rows at most, and one document at least."""
    start, many = 0, len(offsets) - 1
    while start < many:
        end = int(np.searchsorted(offsets, offsets[start] + rows, side="right")) - 1
        end = min(max(end, start + 1), many)
        yield start, end
        start = end


def _check_widths(query: MultiVectors, documents: MultiVectors) -> None:
    one, other = (
        each.vectors.shape[1] * (8 if each.dtype == "ubinary" else 1) for each in (query, documents)
    )
    if one != other:
        raise InvalidArgument(
            f"the query's vectors have {one} components, and the documents' {other}: embed both with the "
            "same encoder and the same dimensions"
        )


def write(message: pb.MultiVector, given: MultiVectors) -> None:
    """Fill in the message."""
    dense.write(message.vectors, given.vectors, given.dtype, given.scale)
    message.offsets = given.offsets.astype(WIRE_OFFSETS).tobytes()


def read(message: pb.MultiVector) -> MultiVectors:
    """The message's items, in memory of their own. InvalidArgument if rows or offsets are not valid."""
    packed = dense.unpack(message.vectors)
    vectors = packed.astype(packed.dtype.newbyteorder("="))
    if len(message.offsets) % WIRE_OFFSETS.itemsize or not message.offsets:
        raise InvalidArgument(f"multi-vectors have offsets of {len(message.offsets)} bytes")
    offsets = np.frombuffer(message.offsets, WIRE_OFFSETS).astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(vectors) or (np.diff(offsets) < 0).any():
        raise InvalidArgument(
            f"multi-vectors have {len(vectors)} rows, and offsets that do not split them into items"
        )
    return MultiVectors(
        vectors, offsets, dense.FROM_PROTO[message.vectors.dtype], float(message.vectors.scale)
    )
