"""The cost of a run, fitted to measurements, and kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_server.engine.batch import Payload
from trimtab_server.engine.fleet import measuring
from trimtab_server.engine.fleet.measuring import SHAPES, CostCache, fit, measure
from trimtab_server.engine.queue.cost import Cost


def sample(units: int) -> Payload:
    return Payload({}, min(units, 256), b"")


@given(
    st.floats(1e-4, 1e-1), st.floats(1e-6, 1e-3), st.floats(0, 1e-3), st.floats(0, 1e-7), st.integers(0, 99)
)
def test_the_fit_finds_the_cost_that_made_the_times(
    run: float, token: float, pad: float, pair: float, seed: int
) -> None:
    true = Cost(run, token, pad, pair)
    noise = np.random.default_rng(seed).normal(1, 0.01, len(SHAPES))
    shapes = [(len(shape), sum(shape), max(shape)) for shape in SHAPES]
    samples = [
        (shape, true.seconds(*size) * factor)
        for shape, size, factor in zip(SHAPES, shapes, noise, strict=True)
    ]
    fitted = fit(samples)
    assert min(fitted.pad_seconds, fitted.pair_seconds) >= 0
    for size in shapes:
        assert fitted.seconds(*size) == pytest.approx(true.seconds(*size), rel=0.06)


def test_a_graph_that_costs_nothing_has_a_cost() -> None:
    cost = measure(lambda payloads: None, sample)
    assert 0 < cost.run_seconds < 0.01 and cost.unit_seconds > 0


def test_texts_are_no_longer_than_the_encoder_reads() -> None:
    seen: list[int] = []
    measure(
        lambda payloads: seen.extend(each.units for each in payloads), lambda units: sample(min(units, 64))
    )
    assert max(seen) == 64


class Device:
    """Runs that take the time that they say, on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> None:
        self.factor, self.runs, self._now = factor, 0, 0.0
        monkeypatch.setattr(measuring.time, "perf_counter", lambda: self._now)

    def run(self, payloads: Sequence[Payload]) -> None:
        self.runs += 1
        units = [payload.units for payload in payloads]
        self._now += self.factor * Cost(0.01, 0.001).seconds(len(units), sum(units), max(units))


def test_a_cost_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured = CostCache(tmp_path / "costs")
    first = Device(monkeypatch)
    cost = measured.measure(first.run, sample, "graph", "cpu")
    second = Device(monkeypatch)
    assert measured.measure(second.run, sample, "graph", "cpu") == cost
    assert second.runs < first.runs / 2
    other = Device(monkeypatch)
    measured.measure(other.run, sample, "another graph", "cpu")
    assert other.runs == first.runs


def test_a_cost_that_does_not_hold_any_more_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = CostCache(tmp_path)
    before = measured.measure(Device(monkeypatch).run, sample, "graph")
    after = measured.measure(Device(monkeypatch, factor=5).run, sample, "graph")
    assert after.unit_seconds == pytest.approx(5 * before.unit_seconds)
    assert measured.measure(Device(monkeypatch, factor=5).run, sample, "graph") == after


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"run_seconds": 0.138, "unit_seconds": 0e-9}',
        '{"run_seconds": 0.266, "unit_seconds": -0.001}',
        '{"run_seconds": 0.01, "unit_seconds": 0.001, "pad_seconds": -1.0}',
        '{"\xff": 1}',
    ],
)
def test_what_cannot_be_read_or_written_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    measured = CostCache(tmp_path)
    cost = measured.measure(Device(monkeypatch).run, sample, "graph")
    for path in tmp_path.iterdir():
        path.write_bytes(content.encode("latin-1"))
    assert measured.measure(Device(monkeypatch).run, sample, "graph") == cost
    (tmp_path / "file").touch()
    assert CostCache(tmp_path / "file").measure(Device(monkeypatch).run, sample, "graph") == cost
