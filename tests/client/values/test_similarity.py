"""Scores by every similarity, and the nearest of them."""

import numpy as np
import pytest

from trimtab.stores.base import SIMILARITIES
from trimtab.values.similarity import best, nearest, normalised, scores

RANDOM = np.random.default_rng(0)
QUERY = RANDOM.standard_normal(8).astype(np.float32)
VECTORS = RANDOM.standard_normal((50, 8)).astype(np.float32)
BY_DEFINITION = {
    "dot": lambda a, b: a @ b,
    "cosine": lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b)),
    "euclidean": lambda a, b: -np.sqrt(((a - b) ** 2).sum()),
    "manhattan": lambda a, b: -np.abs(a - b).sum(),
}


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_scores_are_those_of_the_definition(similarity: str) -> None:
    wanted = [BY_DEFINITION[similarity](vector, QUERY) for vector in VECTORS.astype(np.float64)]
    found = scores(QUERY, VECTORS, similarity)
    assert found.dtype == np.float32 and np.allclose(found, wanted, atol=1e-5)


def test_a_vector_of_length_0_is_near_to_nothing_by_cosine() -> None:
    assert scores(QUERY, np.zeros((1, 8), np.float32), "cosine").tolist() == [0.0]


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lengths_are_1_whatever_they_were(size: float) -> None:
    lengths = np.linalg.norm(normalised(VECTORS * np.float32(size)), axis=1)
    assert np.allclose(lengths, 1)


def test_the_best_come_first_and_the_earlier_of_equals() -> None:
    near = np.array([1, 3, 2, 3, 0], np.float32)
    assert best(near, 3).tolist() == [1, 3, 2] and best(near, 9).tolist() == [1, 3, 2, 0, 4]


def test_the_nearest_of_parts_are_those_of_the_whole() -> None:
    whole = scores(QUERY, VECTORS, "dot")
    near, rows = nearest(QUERY, np.array_split(VECTORS, 7), "dot", 5)
    assert rows.tolist() == np.argsort(-whole, kind="stable")[:5].tolist()
    assert np.array_equal(near, whole[rows])


def test_what_is_not_finite_is_near_to_nothing() -> None:
    vectors = np.array([[np.nan] * 8, QUERY], np.float32)
    assert nearest(QUERY, [vectors], "dot", 3)[1].tolist() == [1]
