"""Multi-vectors: token pooling against scipy's clusters; rows are cut and packed as dense vectors are."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster import hierarchy

from trimtab.errors import FailedPrecondition, InternalError, InvalidArgument
from trimtab.kinds import Dtype
from trimtab.values.column import Column
from trimtab_server.outputs import token_pooling
from trimtab_server.outputs.kind import Shape
from trimtab_server.outputs.known import KINDS
from trimtab_server.outputs.token_pooling import pooled

KIND = KINDS["multi_vector"]
NAMES = ("multi_vector",)


def rows_of(count: int, topics: int = 6, width: int = 24, seed: int = 0) -> np.ndarray:
    """Rows of length 1 around a few directions."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(topics, width))[rng.integers(0, topics, count)]
    rows = (rows + 0.7 * rng.normal(size=rows.shape)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pool(rows: np.ndarray, most: int, *, unit: bool = True) -> np.ndarray:
    *pieces, result = pooled(rows, most, unit=unit)
    assert result is not None and all(piece is None for piece in pieces)
    return result


def space(**changes: Any) -> Any:
    known = {
        "dimensions": 24, "normalized": True, "int8_limit": 0.9, "title": "encoder e", "cure": "export it",
        "uncalibrated": "was not calibrated", "similarity": "cosine",
    }  # fmt: skip
    return SimpleNamespace(**{**known, **changes})


def columns(*counts: int) -> dict[str, Column]:
    return {"multi_vector": Column(rows_of(sum(counts)), np.cumsum([0, *counts]).astype(np.int64))}


@pytest.mark.parametrize(("count", "most"), [(10, 4), (60, 20), (200, 33), (257, 3)])
def test_clusters_are_scipys(count: int, most: int) -> None:
    rows = rows_of(count, topics=12)
    rest = rows[1:]
    far = (1 - rest @ rest.T)[np.triu_indices(count - 1, 1)]
    labels = hierarchy.fcluster(hierarchy.linkage(far, "ward"), most - 1, "maxclust")
    _, first = np.unique(labels, return_index=True)
    means = np.stack([rest[labels == labels[place]].mean(axis=0) for place in np.sort(first)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(pool(rows, most), [rows[0], *means], atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 50))
def test_there_are_as_many_as_asked_for(count: int, most: int, seed: int) -> None:
    rows = rows_of(count, seed=seed)
    found = pool(rows, most)
    assert len(found) == min(count, most) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found, pool(rows, most))
    if count <= most:
        np.testing.assert_array_equal(found, rows)
    elif most > 1:
        np.testing.assert_array_equal(found[0], rows[0])


@given(st.integers(2, 12), st.integers(1, 5))
def test_rows_that_are_the_same_are_pooled_first(different: int, times: int) -> None:
    rows = np.eye(24, dtype=np.float32)[np.tile(np.arange(different), times)]
    np.testing.assert_allclose(pool(rows, different + 1), [rows[0], *rows[1:different], rows[0]][: len(rows)])


@pytest.mark.parametrize("most", [1, 2, 100, 300, 999])
def test_long_documents_are_halved_first(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(1000, topics=40)
    largest = []
    clustered = token_pooling._clustered

    def noted(sums: np.ndarray, sizes: np.ndarray, most: int) -> Any:
        largest.append(len(sums))
        return clustered(sums, sizes, most)

    monkeypatch.setattr(token_pooling, "_clustered", noted)
    found = pool(rows, most)
    assert len(found) == most and max(largest) <= token_pooling.SEGMENT
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_rows_of_any_length_become_their_means() -> None:
    rows = np.array([[9, 9], [2, 0], [4, 0], [0, 3]], np.float32)
    np.testing.assert_allclose(pool(rows, 3, unit=False), [[9, 9], [3, 0], [0, 3]])


def test_the_kind_pools_item_by_item() -> None:
    given = columns(30, 1, 0, 12)
    *_, found = KIND.reduced(given, NAMES, space(), Shape(max_vectors=5))
    assert found is not None
    column = found["multi_vector"]
    assert [len(column.item(place)) for place in range(4)] == [5, 1, 0, 5]
    for place in range(4):
        rows = given["multi_vector"].item(place)
        np.testing.assert_array_equal(column.item(place), pool(rows, 5) if len(rows) else rows)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "ubinary"])
def test_rows_are_packed_as_dense_vectors_are(dtype: Dtype) -> None:
    given = columns(3, 0, 5)
    found = KIND.finish(given, NAMES, space(), Shape(16, dtype))
    dense = KINDS["dense"].finish(given, NAMES, space(), Shape(16, dtype))
    np.testing.assert_array_equal(found.vectors, dense.matrix)
    assert (found.dtype, found.scale) == (dense.dtype, dense.scale)
    assert found.offsets.tolist() == [0, 3, 3, 8]


def test_scores_are_maxsim() -> None:
    query, documents = columns(4), columns(4, 7)
    scores = KIND.score(query, documents, NAMES, space())
    rows = [documents["multi_vector"].item(place) for place in range(2)]
    expected = [(query["multi_vector"].values @ each.T).max(axis=1).sum() for each in rows]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert KIND.similarity(space()) == "maxsim"


def test_what_is_refused() -> None:
    for shape, changes, message in (
        (Shape(25), {}, "dimensions is 25, encoder e has 24"),
        (Shape(12, "ubinary"), {}, "must be a multiple of 8, not 12"),
        (Shape(8), {"normalized": None}, "cannot be cut"),
        (Shape(None, "int8"), {"int8_limit": None}, "the range of int8 was not calibrated"),
    ):
        with pytest.raises((InvalidArgument, FailedPrecondition), match=message):
            KIND.check(space(**changes), shape)
    with pytest.raises(InternalError, match="without offsets"):
        KIND.finish({"multi_vector": Column(rows_of(3))}, NAMES, space(), Shape())


def test_pieces_are_small() -> None:
    pieces = list(pooled(rows_of(200), 20, unit=True))
    assert len(pieces) > 180 // token_pooling.JOINS and all(a is None for a, _ in pairwise(pieces))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 50))
def test_rows_are_added_up_in_pieces(count: int, clusters: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.unique(rng.integers(0, clusters, count), return_inverse=True)[1]
    rows = rng.normal(size=(count, 7)).astype(np.float32)
    expected = np.stack(
        [rows[labels == each].sum(axis=0, dtype=np.float64) for each in range(max(labels) + 1)]
    )
    for numbers, pieces in ((1, 6), (2 * count, 3), (7 * count, 0)):

        def summed() -> Any:
            yield (yield from token_pooling._sums(rows, labels))

        with mock.patch.object(token_pooling, "NUMBERS", numbers):
            *yielded, sums = summed()
        assert yielded == [None] * pieces
        np.testing.assert_allclose(sums, expected, atol=1e-12)
