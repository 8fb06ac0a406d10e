"""The gate: decides by held-out retrieval alone which rung to take, and what it may be used for.

Over few documents, any ranking finds everything among the first k. A chance ranking finds k of n documents,
so a figure at depth k counts for a verdict only if k / n is at most the loss that the verdict allows: chance
alone must not make up for the loss.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import artifact
from trimtab.artifacts.adapter import Check
from trimtab.artifacts.artifact import Interval
from trimtab.artifacts.cards import TRAINED_ON, Fidelity
from trimtab.kinds import Verdict
from trimtab_export.adapters import metrics

Doubles: TypeAlias = NDArray[np.float64]

MEASURE = "Recall@10"
NEAR = 0.005  # a simpler rung this close behind the best is preferred
# A bridge keeps at least the first share of today's figure, and surely the second.
BRIDGE, BRIDGE_SURELY = 0.98, 0.96
# The share of the upgrade's quality that a cascade must reach.
CASCADE = 0.95
# Without pairs: how often the document that the old encoder ranks first must be among the adapted first ten
# (or the cascade's candidates).
AGREE, AGREE_CASCADE = 0.95, 0.97
CUT = 10
MOST_CANDIDATES = 200


@dataclass(frozen=True, slots=True)
class ArmRecalls:
    """Recall@10 of each test query, by way to search."""

    old: Doubles
    adapted: Doubles
    cascade: Doubles
    reindexed: Doubles
    candidates: Doubles  # 1 if the right document is among the cascade's candidates
    documents: int  # how many were searched


def fewest(depth: int, kept: float) -> int:
    """The fewest documents over which a figure at this depth counts, if the verdict must keep this share."""
    return math.ceil(round(depth / (1 - kept), 6))


def cascade_depth(documents: int) -> int:
    """How many candidates a cascade over this many documents is judged with."""
    return max(1, min(MOST_CANDIDATES, int(round((1 - CASCADE) * documents, 6))))


def few_documents(documents: int) -> Check:
    """Are there enough documents for any verdict that lets the adapter serve?"""
    wanted = fewest(CUT, CASCADE)
    passed = documents >= wanted
    finding = f"searched were {documents:,} documents"
    return Check(
        name="enough documents",
        passed=passed,
        finding=finding
        if passed
        else f"{finding}, and chance alone finds {min(CUT / documents, 1):.0%} of them among the first "
        f"{CUT}; give {wanted:,} or more, better as many as the index has",
    )


def choose(recalls: Mapping[str, Doubles]) -> tuple[str, dict[str, Interval]]:
    """The rung to take, and how far each rung is behind the best; rungs are ordered simplest first.

    recalls: Recall@10 of each select query. The winner is the simplest rung whose paired bootstrap interval
    to the best includes 0 and whose mean is behind by at most NEAR.
    """
    best = max(recalls, key=lambda name: recalls[name].mean())
    behind = {name: metrics.difference(recalls[best], each) for name, each in recalls.items()}
    chosen = next(name for name, gap in behind.items() if gap.low <= 0 and gap.value <= NEAR)
    return chosen, behind


def judge(found: ArmRecalls, checks: Sequence[Check], depth: int) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on an adapter judged by pairs, with reasons."""
    old, new = found.old.mean(), found.reindexed.mean()
    kept = metrics.ratio(found.adapted, found.old)
    gain = metrics.difference(found.reindexed, found.old)
    reasons = [
        f"{MEASURE} of the adapter is {found.adapted.mean():.3f}, of the old encoder on its index {old:.3f}: "
        f"{_share(kept)} of it"
    ]
    failed = [check for check in checks if not check.passed]
    if failed:
        return "re-index", (*(f"{check.name}: {check.finding}" for check in failed), *reasons)
    if kept.value >= BRIDGE and kept.low >= BRIDGE_SURELY:
        if found.documents >= fewest(CUT, BRIDGE):
            return "bridge", (*reasons, "the new encoder's queries may search the old index")
        reasons.append(_too_few_for_a_bridge(found.documents))
    if gain.low <= 0:
        return "stay", (
            *reasons,
            f"the new encoder on an index of its own has {new:.3f}, not surely more than the old "
            f"one's {old:.3f} "
            f"(by {gain.value:+.3f}, 95% between {gain.low:+.3f} and {gain.high:+.3f}): the upgrade "
            "gains nothing here",
        )
    reach = metrics.ratio(found.cascade, found.reindexed)
    better = metrics.difference(found.cascade, found.old)
    cascade = (
        f"{MEASURE} of the first {depth} rescored in the new space is {found.cascade.mean():.3f}: "
        f"{_share(reach)} of "
        f"the {new:.3f} that re-indexing gives"
    )
    if reach.value >= CASCADE and better.low > 0:
        return "cascade", (
            *reasons,
            cascade,
            f"by itself the adapter is not known to keep today's quality: rescore the first {depth}",
        )
    return "re-index", (
        *reasons,
        cascade,
        f"neither is good enough: a bridge keeps {BRIDGE:.0%} of today's, a cascade reaches "
        f"{CASCADE:.0%} of the upgrade "
        "and surely more than today",
    )


def provisional_ends(new: Fidelity | None, old: Fidelity | None) -> tuple[str, ...]:
    """Why an adapter between variants with these cards is provisional, whatever judged it."""
    return tuple(
        artifact.provisional(f"the report card of the {which} variant was {TRAINED_ON}")
        for which, card in (("new", new), ("old", old))
        if card is not None and card.provisional
    )


def judge_by_agreement(
    found: ArmRecalls, checks: Sequence[Check], depth: int
) -> tuple[Verdict, tuple[str, ...]]:
    """The provisional verdict without pairs: how often the old encoder's first document is found."""
    agreed, within = found.adapted.mean(), found.candidates.mean()
    reasons = [
        artifact.provisional(
            "no pairs were given, so nothing is known of right and wrong answers; give --pairs"
        ),
        "the document that the old encoder ranks first is among the adapter's first ten for "
        f"{agreed:.1%} of the "
        f"queries, and among its first {depth} for {within:.1%}",
    ]
    failed = [check for check in checks if not check.passed]
    if failed:
        return "re-index", (*(f"{check.name}: {check.finding}" for check in failed), *reasons)
    if agreed >= AGREE:
        if found.documents >= fewest(CUT, BRIDGE):
            return "bridge", tuple(reasons)
        reasons.append(_too_few_for_a_bridge(found.documents))
    if within >= AGREE_CASCADE:
        return "cascade", (*reasons, f"no bridge: rescore the first {depth}")
    return "re-index", (
        *reasons,
        f"a bridge needs {AGREE:.0%} in the first ten, a cascade {AGREE_CASCADE:.0%} in all",
    )


def _too_few_for_a_bridge(documents: int) -> str:
    return (
        f"no bridge is judged over fewer than {fewest(CUT, BRIDGE):,} documents: over {documents:,}, chance "
        f"alone finds {CUT / documents:.1%} among the first {CUT}, and a bridge may lose {1 - BRIDGE:.0%}"
    )


def _share(interval: Interval) -> str:
    return f"{interval.value:.1%} (95% between {interval.low:.1%} and {interval.high:.1%})"
