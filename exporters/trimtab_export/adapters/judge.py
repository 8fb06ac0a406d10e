"""The arms of the comparison: each way to search, over the same held-out queries and documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.adapter import (
    Arms,
    Calibrator,
    Check,
    Rung,
)
from trimtab.artifacts.artifact import Interval
from trimtab.kinds import (
    Reads,
    Verdict,
)
from trimtab_export.adapters import gate, metrics
from trimtab_export.adapters.calibrate import fit_calibrator
from trimtab_export.adapters.checks import meaning
from trimtab_export.adapters.climb import FittedRung
from trimtab_export.adapters.gate import CUT
from trimtab_export.adapters.maps import Groups, Map
from trimtab_export.adapters.metrics import Index, Ranks

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EncodedQueries:
    """Queries as both encoders see them, row by row.

    rows: float32 (n, dimensions + width), the new encoder's [embedding | states]. old: the old vectors.
    right: the rows of the index that answer each.
    """

    rows: Floats
    old: Floats
    groups: Groups
    right: list[list[int]]


@dataclass(frozen=True, slots=True)
class Indexes:
    """The same documents embedded by the old and the new encoder; the new embeddings have `dimensions`."""

    old: Index
    new: Index
    dimensions: int

    def nearest(self, queries: Floats) -> list[list[int]]:
        """The document that the old index ranks first, for each of the old encoder's queries."""
        best = [
            metrics.scores(queries[start : start + metrics.CHUNK], self.old).argmax(axis=1)
            for start in range(0, len(queries), metrics.CHUNK)
        ]
        return [[int(row)] for row in np.concatenate(best)]

    def adapt(self, map: Map, reads: Reads, asked: EncodedQueries) -> Floats:
        """The queries through an adapter."""
        rows = asked.rows if reads == "states" else asked.rows[:, : self.dimensions]
        return map(rows, asked.groups)

    def recall(self, map: Map, reads: Reads, asked: EncodedQueries) -> Doubles:
        """Recall@10 of each query through an adapter, on the old index."""
        return metrics.recall(metrics.ranks(self.adapt(map, reads, asked), self.old, asked.right), CUT)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The chosen rung, its measurements, and the gate's verdict."""

    chosen: FittedRung
    rungs: tuple[Rung, ...]
    arms: Arms
    against_old: Interval
    against_reindexed: Interval
    cascade_depth: int
    cascade_against_reindexed: Interval
    calibrator: Calibrator | None
    checks: tuple[Check, ...]
    verdict: Verdict
    reasons: tuple[str, ...]


def choose(
    rungs: Sequence[FittedRung], indexes: Indexes, select: EncodedQueries
) -> tuple[FittedRung, tuple[Rung, ...]]:
    """The rung that the gate chooses, and each rung's result on the select queries."""
    recalls = {rung.name: indexes.recall(rung.map, rung.reads, select) for rung in rungs}
    name, behind = gate.choose(recalls)
    told = tuple(
        Rung(
            name=rung.name,
            recall_10=float(recalls[rung.name].mean()),
            behind=behind[rung.name],
            seconds=round(rung.seconds, 3),
        )
        for rung in rungs
    )
    return next(rung for rung in rungs if rung.name == name), told


def judge(
    chosen: FittedRung,
    rungs: tuple[Rung, ...],
    indexes: Indexes,
    select: EncodedQueries,
    test: EncodedQueries,
    looked: Sequence[Check],
    *,
    by_pairs: bool,
) -> Judgement:
    """Every arm on the test queries, and the verdict. The calibrator learns from the select queries."""
    embeddings = test.rows[:, : indexes.dimensions]
    adapted = indexes.adapt(chosen.map, chosen.reads, test)
    old = metrics.ranks(test.old, indexes.old, test.right)
    new = metrics.ranks(embeddings, indexes.new, test.right)
    comparable = test.old.shape[1] == embeddings.shape[1]
    naive = metrics.ranks(embeddings, indexes.old, test.right) if comparable else None
    through = metrics.ranks(adapted, indexes.old, test.right)
    documents = len(indexes.old.rows)
    depth = gate.cascade_depth(documents)
    rescored, candidates = metrics.cascade(adapted, indexes.old, embeddings, indexes.new, test.right, depth)
    found = gate.ArmRecalls(
        old=metrics.recall(old, CUT),
        adapted=metrics.recall(through, CUT),
        cascade=metrics.recall(rescored, CUT),
        reindexed=metrics.recall(new, CUT),
        candidates=candidates,
        documents=documents,
    )
    checked = (*looked, gate.few_documents(documents), *_pair_checks(old, new, documents, by_pairs))
    say = gate.judge if by_pairs else gate.judge_by_agreement
    verdict, reasons = say(found, checked, depth)
    return Judgement(
        chosen=chosen,
        rungs=rungs,
        arms=Arms(
            old_on_old=metrics.quality(old),
            naive=None if naive is None else metrics.quality(naive),
            adapted=metrics.quality(through),
            cascade=metrics.quality(rescored),
            reindexed=metrics.quality(new),
        ),
        against_old=metrics.ratio(found.adapted, found.old),
        against_reindexed=metrics.ratio(found.adapted, found.reindexed),
        cascade_depth=depth,
        cascade_against_reindexed=metrics.ratio(found.cascade, found.reindexed),
        calibrator=fit_calibrator(indexes.adapt(chosen.map, chosen.reads, select), select.old, indexes.old),
        checks=checked,
        verdict=verdict,
        reasons=reasons,
    )


def _pair_checks(old: Ranks, new: Ranks, documents: int, by_pairs: bool) -> list[Check]:
    return [meaning(old, new, documents)] if by_pairs else []
