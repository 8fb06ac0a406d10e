"""Sparse vectors: on the wire and back, joined, scored, as scipy's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import InvalidArgument
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import sparse
from trimtab.values.sparse import SparseVectors

DIMENSIONS = 40


def made(rows: list[dict[int, float]], dtype: Any = np.float32) -> SparseVectors:
    """Vectors with these components."""
    items = [sorted(row.items()) for row in rows]
    indptr = np.cumsum([0, *map(len, items)]).astype(np.int64)
    flat = [entry for item in items for entry in item]
    indices, values = [entry[0] for entry in flat], [entry[1] for entry in flat]
    return SparseVectors(indptr, np.array(indices, np.int32), np.array(values, dtype), DIMENSIONS)


def long(vectors: SparseVectors) -> np.ndarray:
    """The same with their zeros, float64."""
    found = np.zeros((len(vectors), vectors.dimensions))
    for row, (indices, values) in enumerate(vectors):
        found[row, indices] = values
    return found


def same(one: SparseVectors, other: SparseVectors) -> None:
    for name in ("indptr", "indices", "values"):
        mine, theirs = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    assert one.dimensions == other.dimensions


NUMBERS = st.floats(2**-10, 100, width=16)
ROWS = st.lists(st.dictionaries(st.integers(0, DIMENSIONS - 1), NUMBERS, max_size=12), max_size=8)


@given(ROWS, st.sampled_from([np.float32, np.float16]))
def test_what_is_written_is_read_and_belongs_to_the_reader(rows: list[dict[int, float]], dtype: Any) -> None:
    message = pb.Sparse()
    sparse.write(message, made(rows, dtype))
    found = sparse.unpack(pb.Sparse.FromString(message.SerializeToString()))
    same(found, made(rows, dtype))
    assert all(getattr(found, name).flags.writeable for name in ("indptr", "indices", "values"))


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_parts_are_joined_in_order(parts: list[list[dict[int, float]]]) -> None:
    same(sparse.joined(list(map(made, parts))), made([row for part in parts for row in part]))


@given(st.dictionaries(st.integers(0, DIMENSIONS - 1), NUMBERS, max_size=12), ROWS)
def test_the_dot_product_is_that_of_the_long_vectors(
    query: dict[int, float], rows: list[dict[int, float]]
) -> None:
    vectors = made(rows)
    asked = made([query])
    scores = sparse.dot(asked[0], vectors)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, long(vectors) @ long(asked)[0], rtol=1e-6)
    alone = [sparse.dot(asked[0], made([row]))[0] for row in rows]
    np.testing.assert_array_equal(scores, np.array(alone, np.float32))
    np.testing.assert_allclose(sparse.lengths(vectors), np.linalg.norm(long(vectors), axis=1), rtol=1e-6)


def test_items_are_views_by_their_place() -> None:
    vectors = made([{3: 1.0}, {}, {0: 2.0, 9: 0.5}])
    assert len(vectors) == 3
    indices, values = vectors[-1]
    assert (indices.tolist(), values.tolist()) == ([0, 9], [2.0, 0.5])
    assert np.shares_memory(values, vectors.values)
    assert [len(found) for found, _ in vectors] == [1, 0, 2]
    for place in (3, -4):
        with pytest.raises(IndexError, match=f"vector {place} of 3"):
            vectors[place]


def test_scipy_reads_them_where_they_are() -> None:
    vectors = made([{3: 1.0}, {}, {0: 2.0, 9: 0.5}])
    matrix = vectors.to_scipy()
    assert matrix.shape == (3, DIMENSIONS) and matrix.has_sorted_indices
    np.testing.assert_array_equal(matrix.toarray(), long(vectors))
    assert np.shares_memory(matrix.data, vectors.values)
    assert np.shares_memory(matrix.indices, vectors.indices)
    halved = made([{3: 1.0}], np.float16).to_scipy()
    assert halved.dtype == np.float32 and halved[0, 3] == 1.0


def test_words_by_their_weight(tmp_path: Path) -> None:
    vocabulary = [f"word{number}" for number in range(DIMENSIONS)]
    vectors = made([{3: 1.0, 5: 2.5, 0: 1.0}, {}])
    assert list(vectors.words(0, vocabulary).items()) == [("word5", 2.5), ("word0", 1.0), ("word3", 1.0)]
    assert vectors.words(1, vocabulary) == {}
    with pytest.raises(IndexError):
        vectors.words(0, vocabulary[:5])


def message(**changes: object) -> pb.Sparse:
    found = pb.Sparse()
    sparse.write(found, made([{1: 1.0, 2: 1.0}, {0: 1.0}]))
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def whole(*numbers: int) -> bytes:
    return np.array(numbers, "<i4").tobytes()


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"dtype": pb.DATA_TYPE_INT8}, "of the dtype 3"),
        ({"dtype": 99}, "of the dtype 99: a newer server"),
        ({"offsets": b""}, "offsets that do not split 3 entries"),
        ({"offsets": whole(1, 2, 3)}, "offsets that do not split"),
        ({"offsets": whole(0, 2, 4)}, "offsets that do not split"),
        ({"offsets": whole(0, 4, 3)}, "offsets that do not split"),
        ({"offsets": b"123"}, "offsets of 3 bytes"),
        ({"values": whole(1, 1)}, "3 indices and 2 values"),
        ({"indices": whole(2, 1, 0)}, "indices that do not rise"),
        ({"indices": whole(1, 1, 0)}, "indices that do not rise"),
        ({"indices": whole(1, DIMENSIONS, 0)}, "outside of their 40 dimensions"),
        ({"indices": whole(-1, 2, 0)}, "outside of their 40 dimensions"),
    ],
)
def test_what_is_no_matrix_is_refused(changes: dict[str, object], wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=wrong):
        sparse.unpack(message(**changes))
