"""The guard against hubs, on vectors whose geometry is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from trimtab import InvalidArgument
from trimtab.hubness import HubnessGuard

Vectors = NDArray[np.float32]
TOPICS = 40


@pytest.fixture
def world() -> tuple[Vectors, Vectors, Vectors]:
    """Queries, ordinary passages, and others like them: around forty topics that have something in common."""
    rng = np.random.default_rng(7)
    topics = rng.normal(size=(TOPICS, 64)) + 1.0

    def around(count: int) -> Vectors:
        vectors = topics[rng.integers(TOPICS, size=count)] + 1.5 * rng.normal(size=(count, 64))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    return around(400), around(1200), around(1000)


def test_a_passage_between_all_topics_is_flagged_and_ordinary_ones_seldom_are(
    world: tuple[Vectors, Vectors, Vectors],
) -> None:
    queries, ordinary, others = world
    guard = HubnessGuard(queries, ordinary)
    hub = queries.mean(axis=0, keepdims=True)
    hub /= np.linalg.norm(hub)
    assert guard.suspicious(hub).all() and guard.reach(hub) > 2 * guard.threshold
    assert guard.suspicious(others).mean() < 0.03


def test_a_passage_for_one_query_is_no_hub(world: tuple[Vectors, Vectors, Vectors]) -> None:
    queries, ordinary, _ = world
    assert HubnessGuard(queries[1:], ordinary).suspicious(queries[:1]).sum() == 0


def test_what_does_not_go_together_is_refused(world: tuple[Vectors, Vectors, Vectors]) -> None:
    queries, ordinary, _ = world
    with pytest.raises(InvalidArgument, match=r"passages have the shape \(1200, 32\); .* \(n, 64\)"):
        HubnessGuard(queries, ordinary[:, :32])
    with pytest.raises(InvalidArgument, match=r"queries have the shape \(64,\)"):
        HubnessGuard(queries[0], ordinary)
    with pytest.raises(InvalidArgument, match="give at least 200 passages"):
        HubnessGuard(queries, ordinary[:199])
    with pytest.raises(InvalidArgument, match="false_alarms is 0"):
        HubnessGuard(queries, ordinary, false_alarms=0)
    with pytest.raises(InvalidArgument, match=r"passages have the shape \(64,\)"):
        HubnessGuard(queries, ordinary).reach(ordinary[0])
