"""The statistic of query drift: its numbers, its false alarms, and what it sees."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import AdapterError
from trimtab_server.spaces import drift
from trimtab_server.spaces.drift import WINDOW, Baseline, Drift, one_sided, rank_sum

values = st.lists(st.integers(-5, 5), min_size=3, max_size=40)  # with ties


@given(values, values)
def test_the_rank_sum_is_scipys(sample: list[int], reference: list[int]) -> None:
    if len({*sample, *reference}) == 1:
        assert rank_sum(np.array(sample, float), np.sort(np.array(reference, float))) == 0
        return
    z = rank_sum(np.array(sample, float), np.sort(np.array(reference, float)))
    expected = scipy.stats.mannwhitneyu(
        sample, reference, alternative="greater", method="asymptotic", use_continuity=False
    )
    assert one_sided(z) == pytest.approx(expected.pvalue, abs=1e-9)


@given(values, values, st.integers(-3, 3))
def test_the_rank_sum_knows_only_the_order(sample: list[int], reference: list[int], shift: int) -> None:
    first, second = np.array(sample, float), np.sort(np.array(reference, float))
    z = rank_sum(first, second)
    assert rank_sum(np.exp(first) + shift, np.exp(second) + shift) == pytest.approx(z)
    assert rank_sum(-first, np.sort(-second)) == pytest.approx(-z)


def topics(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Unit vectors around a few dozen topics, as queries lie; `shift` moves them all one way."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, 64))
    rows = centres[rng.integers(40, size=count)] + 0.7 * rng.normal(size=(count, 64)) + 0.3
    rows[:, 0] -= shift
    return drift.unit(rows.astype(np.float32))


def test_like_queries_seldom_alarm() -> None:
    reports = []
    for seed in range(100):  # windows beside one baseline share its chance
        baseline, live = Baseline(topics(400, seed)), topics(4 * WINDOW, seed + 1000)
        reports += [baseline.judge(window) for window in np.split(live, 4)]
    assert len(reports) == 400
    assert sum(report.alarm for report in reports) <= 4, "1% of windows"
    z = np.array([(report.depth_z, report.distance_z) for report in reports])
    assert np.abs(z.mean(axis=0)).max() < 0.25, "no bias, although a query of the baseline is never new"


def test_other_queries_alarm_by_one_test_or_the_other() -> None:
    baseline = Baseline(topics(400, 1))
    (moved,) = Drift(baseline).add(topics(WINDOW, 2, shift=6.0))
    assert moved.alarm and moved.depth_z > 4
    rng = np.random.default_rng(3)
    mean = topics(400, 1).mean(axis=0)
    apart = drift.unit((rng.normal(size=(WINDOW, 64)) + 12 * mean).astype(np.float32))
    (report,) = Drift(baseline).add(apart)
    assert report.alarm and report.depth_z < 0 < 4 < report.distance_z, "deep enough, and yet far off"


def test_how_queries_come_does_not_matter() -> None:
    baseline, live = Baseline(topics(200, 1)), topics(3 * WINDOW + 7, 2)
    whole = Drift(baseline).add(live)
    pieces = Drift(baseline)
    singly = [report for row in live for report in pieces.add(row[None])]
    assert whole == singly and len(whole) == 3
    longer = Drift(Baseline(5 * topics(200, 1))).add(3 * live)  # only directions count
    assert [report.alarm for report in longer] == [report.alarm for report in whole]


def test_a_query_that_comes_again_and_again_counts_once() -> None:
    watched = Drift(Baseline(topics(200, 1)))
    live = topics(WINDOW, 2)
    assert watched.add(np.repeat(live[:5], 300, axis=0)) == []
    assert len(watched.add(live)) == 1


def test_too_few_queries_are_said() -> None:
    with pytest.raises(AdapterError, match="49 calibration queries are too few"):
        Baseline(topics(49, 1))
