"""Retrieval measures against their definitions, the bootstrap, the calibrator's fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.artifacts.artifact import Interval
from trimtab.errors import AdapterError
from trimtab_export.adapters import metrics
from trimtab_export.adapters.calibrate import fit_calibrator, monotone

SEEDS = st.integers(0, 2**32 - 1)


def made(
    seed: int, queries: int = 5, documents: int = 30
) -> tuple[metrics.Floats, metrics.Floats, list[list[int]]]:
    rng = np.random.default_rng(seed)
    right = [
        sorted(rng.choice(documents, rng.integers(1, 4), replace=False).tolist()) for _ in range(queries)
    ]
    # A few values only, so that ties are common.
    rows = rng.integers(-2, 3, size=(queries + documents, 3)).astype(np.float32)
    return rows[:queries], rows[queries:], right


@given(SEEDS)
def test_ranks_are_those_of_a_sort_with_ties_against_the_right_ones(seed: int) -> None:
    queries, documents, right = made(seed)
    found = metrics.ranks(queries, metrics.index(documents, "dot"), right)
    at = 0
    for query, wanted in zip(queries, right, strict=True):
        scores = documents @ query
        order = sorted(range(len(documents)), key=lambda row: (-scores[row], row in wanted))
        places = sorted(order.index(row) for row in wanted)
        assert sorted(found.rank[at : at + len(wanted)].tolist()) == places
        at += len(wanted)


@given(SEEDS)
def test_measures_follow_their_definitions(seed: int) -> None:
    queries, documents, right = made(seed)
    found = metrics.ranks(queries, metrics.index(documents, "dot"), right)
    recall, ndcg = metrics.recall(found, 2), metrics.ndcg(found, 2)
    for row, wanted in enumerate(right):
        places = found.rank[found.query == row]
        assert recall[row] == pytest.approx((places < 2).sum() / min(len(wanted), 2))
        best = sum(1 / np.log2(place + 2) for place in range(min(len(wanted), 2)))
        assert ndcg[row] == pytest.approx(sum(1 / np.log2(p + 2) for p in places if p < 2) / best)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_an_index_ranks_as_its_similarity_does(similarity: str) -> None:
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(4, 6)).astype("f4"), rng.normal(size=(20, 6)).astype("f4")
    found = metrics.scores(queries, metrics.index(documents, similarity))  # type: ignore[arg-type]
    if similarity == "cosine":
        truth = metrics.unit(queries) @ metrics.unit(documents).T
    else:
        truth = -np.linalg.norm(queries[:, None] - documents[None], axis=2)
    assert (np.argsort(found, axis=1) == np.argsort(truth, axis=1)).all()
    with pytest.raises(AdapterError, match="manhattan"):
        metrics.index(documents, "manhattan")


@pytest.mark.parametrize("vectors", [np.ones((4, 3), np.float32), np.full((4, 3), np.nan, np.float32)])
def test_vectors_that_tell_nothing_apart_find_nothing(vectors: metrics.Floats) -> None:
    documents = np.ones((50, 3), np.float32)
    found = metrics.ranks(vectors, metrics.index(documents, "cosine"), [[0], [1], [2], [3]])
    assert metrics.quality(found).recall_10 == 0


@given(SEEDS, st.integers(1, 40))
def test_a_cascade_over_everything_is_the_second_ranking(seed: int, depth: int) -> None:
    queries, documents, right = made(seed)
    first = metrics.index(documents[::-1].copy(), "dot")
    then = metrics.index(documents, "dot")
    found, within = metrics.cascade(queries, first, queries, then, right, depth)
    if depth >= len(documents):
        assert (found.rank == metrics.ranks(queries, then, right).rank).all()
        assert (within == 1).all()
    # Nothing is found that was not fetched.
    assert (metrics.recall(found, 1) <= np.maximum(within, 0) * 4).all()


def test_the_bootstrap_holds_the_truth_and_is_paired() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(2000) < 0.7
    one, other = hard.astype(float), (hard & (rng.random(2000) < 0.99)).astype(float)
    gap = metrics.difference(one, other)
    assert gap.low <= gap.value <= gap.high
    assert gap.low > 0, "a paired test sees a difference of under a hundredth"
    assert metrics.ratio(other, one).high < 1
    assert metrics.ratio(one, one) == Interval(value=1, low=1, high=1)


@settings(max_examples=60)
@given(SEEDS, st.integers(2, 400), st.floats(0, 2))
def test_the_calibrator_increases_strictly_whatever_it_is_fitted_on(
    seed: int, count: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    given_scores = np.round(rng.random(count), 2)
    target = given_scores**2 + noise * rng.normal(size=count)
    calibrator = monotone(given_scores, target)
    if np.ptp(given_scores) == 0:
        assert calibrator is None
        return
    assert calibrator is not None
    fine = np.linspace(-0.5, 1.5, 500)
    assert (np.diff(calibrator(fine)) > 0).all()


def test_the_calibrator_finds_the_old_scale() -> None:
    rng = np.random.default_rng(0)
    documents = metrics.unit(rng.normal(size=(500, 16)).astype("f4"))
    old = metrics.unit(rng.normal(size=(200, 16)).astype("f4"))
    index = metrics.index(documents, "cosine")
    adapted = metrics.unit(old + 0.1 * rng.normal(size=old.shape).astype("f4"))
    calibrator = fit_calibrator(adapted, old, index)
    assert calibrator is not None
    found = metrics.scores(adapted, index).ravel()
    wanted = metrics.scores(old, index).ravel()
    assert np.abs(calibrator(found) - wanted).mean() <= np.abs(found - wanted).mean() + 0.01
    constant = np.ones_like(old)
    assert fit_calibrator(constant, old, metrics.index(np.ones((30, 16), np.float32), "cosine")) is None
