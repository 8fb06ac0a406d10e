"""The cost of a run, fitted to measurements."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_server.cost import SHAPES, Cost, fit, measure


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
    cost = measure(lambda ids: None, 0, 256)
    assert 0 < cost.run_seconds < 0.01 and cost.token_seconds > 0


def test_texts_are_no_longer_than_the_encoder_reads() -> None:
    seen: list[int] = []
    measure(lambda ids: seen.extend(map(len, ids)), 0, 64)
    assert max(seen) == 64
