"""Climbs the ladder: fits every rung on the same rows, simplest first."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.kinds import Reads
from trimtab_export.adapters import ladder
from trimtab_export.adapters.ladder import Fit
from trimtab_export.adapters.listwise import Training, fit_listwise
from trimtab_export.adapters.maps import Groups, Map
from trimtab_export.adapters.metrics import Index

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

MLP = Training(width=512, epochs=16, rate=2e-3, linear_rate=5e-4)
# A hidden layer next to the inner head gained nothing over training the head itself, and doubles the cost.
INNER = Training(width=0, epochs=10, rate=0.0, linear_rate=2e-5)
FEWEST_PAIRS = 200  # queries with a right document; fewer say too little about which documents are right


@dataclass(frozen=True, slots=True)
class FittedRung:
    """A fitted rung."""

    name: str
    map: Map
    reads: Reads
    seconds: float


@dataclass(frozen=True, slots=True)
class FitData:
    """What the rungs are fitted on.

    rows: float32 (n, dimensions + width), [embedding | states]; width may be 0. y: the old rows.
    scale: the factor from y, of length 1, to the old index's vectors, if those have another length.
    groups: each row's group, 0 for none; group i + 1 is group_names[i].
    right: the documents, by their row in the old index, that answer a row; many rows have none.
    """

    rows: Floats
    y: Floats
    weights: Floats
    dimensions: int
    unit_input: bool
    unit_output: bool
    scale: float
    groups: Groups
    group_names: tuple[str, ...]
    old_index: Index
    right: Mapping[int, Sequence[int]]

    def final(self) -> Fit:
        """The data for fitting on the final vectors."""
        return Fit(
            x=self.rows[:, : self.dimensions],
            y=self.y,
            weights=self.weights,
            unit_input=self.unit_input,
            unit_output=self.unit_output,
            first=0,
            last=self.dimensions,
        )

    def inner(self) -> Fit:
        """The data for fitting on the pooled states, without the embedding: the last states determine it."""
        return replace(
            self.final(), x=self.rows, unit_input=False, first=self.dimensions, last=self.rows.shape[1]
        )


Score: TypeAlias = Callable[[Map, Reads], Doubles]


def climb(ground: FitData, score: Score, progress: Callable[[str], None]) -> Iterator[FittedRung]:
    """The rungs in order, simplest first; `progress` is called for each.

    `score` returns Recall@10 of the select queries with a map: trained rungs start from the best linear one.
    """
    fit = ground.final()
    linear = []
    for name, act in _closed_forms(fit):
        linear.append(_fitted(ground, name, "embeddings", act, progress))
        yield linear[-1]
    best = max(linear, key=lambda rung: float(score(rung.map, "embeddings").mean()))
    if ground.group_names:
        yield _fitted(
            ground,
            f"{best.name} + group shift",
            "embeddings",
            lambda: ladder.fit_group_shift(fit, best.map, ground.groups, len(ground.group_names)),
            progress,
        )
    right = ground.right if len(ground.right) >= FEWEST_PAIRS else None
    yield _fitted(
        ground,
        "residual MLP",
        "embeddings",
        lambda: fit_listwise(fit, best.map, ground.old_index, MLP),
        progress,
    )
    if right is not None:
        yield _fitted(
            ground,
            "residual MLP, by pairs",
            "embeddings",
            lambda: fit_listwise(fit, best.map, ground.old_index, MLP, right),
            progress,
        )
    if ground.rows.shape[1] > ground.dimensions:
        inner = ground.inner()
        head = _fitted(ground, "inner head", "states", lambda: ladder.fit_inner_ridge(inner), progress)
        yield head
        yield _fitted(
            ground,
            "inner head, listwise",
            "states",
            lambda: fit_listwise(inner, head.map, ground.old_index, INNER),
            progress,
        )
        if right is not None:
            yield _fitted(
                ground,
                "inner head, by pairs",
                "states",
                lambda: fit_listwise(inner, head.map, ground.old_index, INNER, right),
                progress,
            )


def _closed_forms(fit: Fit) -> Iterator[tuple[str, Callable[[], Map]]]:
    if fit.last - fit.first == fit.y.shape[1]:
        yield "identity", lambda: ladder.fit_identity(fit)
        yield "mean shift", lambda: ladder.fit_mean_shift(fit)
    yield "rotation", lambda: ladder.fit_procrustes(fit)
    yield "centred rotation", lambda: ladder.fit_procrustes(fit, centred=True)
    yield "centred, scaled rotation", lambda: ladder.fit_procrustes(fit, centred=True, scaled=True)
    yield "low-rank residual", lambda: ladder.fit_low_rank(fit)
    yield "whitening", lambda: ladder.fit_whitening(fit)
    yield "ridge toward the rotation", lambda: ladder.fit_ridge(fit, toward_rotation=True)
    yield "ridge", lambda: ladder.fit_ridge(fit)


def _fitted(
    ground: FitData, name: str, reads: Reads, act: Callable[[], Map], progress: Callable[[str], None]
) -> FittedRung:
    progress(name)
    started = time.perf_counter()
    map = act()
    return FittedRung(name, map, reads, time.perf_counter() - started)
