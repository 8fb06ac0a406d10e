"""Each rung against a drift that it is made for; and the graphs, which must be the maps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimtab.errors import AdapterError
from trimtab_export.adapters import ladder, maps
from trimtab_export.adapters.ladder import Fit
from trimtab_export.adapters.listwise import Training, fit_listwise
from trimtab_export.adapters.maps import Map
from trimtab_export.adapters.metrics import index, ranks, recall, unit

RNG = np.random.default_rng(0)
ROWS, D = 600, 12


def rotation(rows: int, columns: int) -> maps.Floats:
    return np.linalg.qr(RNG.normal(size=(max(rows, columns), max(rows, columns))))[0][:rows, :columns].astype(
        "f4"
    )


def fit(x: maps.Floats, y: maps.Floats, *, normalized: bool = False) -> Fit:
    return Fit(
        x=x.astype("f4"),
        y=y.astype("f4"),
        weights=np.ones(len(x), np.float32),
        unit_input=normalized,
        unit_output=normalized,
        first=0,
        last=x.shape[1],
    )


def error(map: Map, given: Fit) -> float:
    return float(np.abs(map(given.x) - given.y).mean())


X = RNG.normal(size=(ROWS, D)).astype("f4") * np.linspace(0.3, 2, D, dtype="f4")
SHIFT = RNG.normal(size=D).astype("f4")
LOW_RANK = (RNG.normal(size=(D, 2)) @ RNG.normal(size=(2, D))).astype("f4") / 4
GENERAL = RNG.normal(size=(D, D)).astype("f4")
TURN = rotation(D, D)

CASES: list[tuple[str, Callable[[Fit], Map], Fit]] = [
    ("identity", ladder.fit_identity, fit(X, X)),
    ("mean shift", ladder.fit_mean_shift, fit(X, X + SHIFT)),
    ("rotation", ladder.fit_procrustes, fit(X, X @ TURN)),
    ("centred", lambda f: ladder.fit_procrustes(f, centred=True), fit(X, X @ TURN + SHIFT)),
    ("scaled", lambda f: ladder.fit_procrustes(f, centred=True, scaled=True), fit(X, 3 * X @ TURN + SHIFT)),
    ("low rank", lambda f: ladder.fit_low_rank(f, rank=2), fit(X, X + X @ LOW_RANK + SHIFT)),
    ("ridge", ladder.fit_ridge, fit(X, X @ GENERAL + SHIFT)),
    ("ridge to rotation", lambda f: ladder.fit_ridge(f, toward_rotation=True), fit(X, X @ GENERAL + SHIFT)),
    ("inner", ladder.fit_inner_ridge, fit(X, X @ GENERAL + SHIFT)),
    ("wider", ladder.fit_procrustes, fit(X[:, :8], X[:, :8] @ rotation(8, D))),
    ("narrower", ladder.fit_ridge, fit(X, X @ rotation(D, 7))),
]


@pytest.mark.parametrize(("act", "given"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_rung_undoes_the_drift_it_is_made_for(
    act: Callable[[Fit], Map], given: Fit, tmp_path: Path
) -> None:
    map = act(given)
    assert error(map, given) < 2e-3
    maps.write(map, tmp_path / "adapter.onnx")
    maps.check(map, tmp_path / "adapter.onnx", given.x)


def test_whitening_takes_on_the_old_covariance() -> None:
    stretched = X @ GENERAL
    found = ladder.fit_whitening(fit(X, stretched))(X)
    assert np.allclose(np.cov(found.T), np.cov(stretched.T), atol=0.1 * np.abs(np.cov(stretched.T)).max())


def test_unit_rows_in_and_out(tmp_path: Path) -> None:
    given = fit(7 * unit(X), unit(X @ TURN), normalized=True)
    map = ladder.fit_procrustes(given)
    assert np.allclose(np.linalg.norm(map(given.x), axis=1), 1, atol=1e-5)
    assert error(map, given) < 1e-3
    maps.write(map, tmp_path / "a.onnx")
    maps.check(map, tmp_path / "a.onnx", given.x)
    maps.check(map, tmp_path / "a.onnx", np.zeros((2, D), np.float32))


def test_a_shift_needs_equal_dimensions() -> None:
    for act in (ladder.fit_identity, ladder.fit_mean_shift):
        with pytest.raises(AdapterError, match="12 and 7"):
            act(fit(X, X[:, :7]))


def test_the_penalty_grows_with_the_noise() -> None:
    """Of few and noisy rows ridge stays near nothing, or near the rotation it is drawn to."""
    few = slice(0, 30)
    noisy = X[few] @ TURN + 3 * RNG.normal(size=(30, D)).astype("f4")
    drawn = ladder.fit_ridge(fit(X[few], noisy), toward_rotation=True)
    plain = ladder.fit_ridge(fit(X[few], noisy))
    truth = fit(X, X @ TURN)
    assert plain.weight is not None
    assert np.linalg.norm(plain.weight) < np.linalg.norm(np.linalg.lstsq(X[few], noisy, rcond=None)[0])
    assert error(drawn, truth) < 1.2 * error(plain, truth)


def test_groups_have_shifts_of_their_own(tmp_path: Path) -> None:
    groups = RNG.integers(0, 3, ROWS)
    shifts = np.stack([np.zeros(D), SHIFT, -2 * SHIFT]).astype("f4")
    given = fit(X, X + shifts[groups])
    map = ladder.fit_group_shift(given, ladder.fit_identity(given), groups, 2)
    assert map.groups is not None
    assert np.abs(map.groups - shifts).max() < 0.5 * np.abs(shifts).max()
    assert np.abs(map(X, groups) - given.y).mean() < 0.5 * np.abs(X - given.y).mean()
    assert (map(X) == map(X, np.zeros(ROWS, np.int64))).all()
    maps.write(map, tmp_path / "a.onnx")
    maps.check(map, tmp_path / "a.onnx", X)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_the_network_starts_at_the_linear_map_and_learns_what_that_cannot(
    similarity: str, tmp_path: Path
) -> None:
    bent = np.abs(X) @ TURN + X @ GENERAL
    given = fit(X, unit(bent) if similarity == "cosine" else bent)
    start = ladder.fit_ridge(given)
    documents = index(given.y[:200], similarity)  # type: ignore[arg-type]
    training = Training(width=64, documents=128, batch=64, epochs=40, rate=1e-2, linear_rate=1e-3)
    assert fit_listwise(given, start, documents, replace(training, epochs=0)) is start
    learned = fit_listwise(given, start, documents, training)
    assert learned.hidden is not None
    maps.write(learned, tmp_path / "a.onnx")
    maps.check(learned, tmp_path / "a.onnx", X)
    if similarity == "cosine":
        cosine = [(unit(map(X)) * given.y).sum(axis=1).mean() for map in (start, learned)]
        assert cosine[1] > cosine[0]


def test_right_documents_teach_what_the_old_queries_do_not_know(tmp_path: Path) -> None:
    blind = X * (np.arange(D) < D // 3)  # the old queries see a third of what there is
    given = fit(X, unit(blind @ TURN), normalized=True)
    documents = index(unit(X @ TURN)[:200], "cosine")
    asked = [[row] for row in range(100, 200)]
    start = ladder.fit_ridge(given)
    training = Training(width=0, documents=128, batch=64, epochs=10, rate=0.0, linear_rate=3e-2)
    taught = fit_listwise(given, start, documents, training, {row: [row] for row in range(100)})
    found = [recall(ranks(map(X[100:200]), documents, asked), 10).mean() for map in (start, taught)]
    assert found[1] > found[0] + 0.2
    maps.write(taught, tmp_path / "a.onnx")
    maps.check(taught, tmp_path / "a.onnx", X)


def test_a_graph_that_is_not_the_map_is_refused(tmp_path: Path) -> None:
    map = ladder.fit_ridge(fit(X, X @ GENERAL))
    maps.write(map.scaled(1.01), tmp_path / "a.onnx")
    with pytest.raises(AdapterError, match="differs from the fitted map"):
        maps.check(map, tmp_path / "a.onnx", X)
