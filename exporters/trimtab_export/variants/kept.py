"""Measures how much of the source's retrieval a variant keeps, over each set of pairs and in the worst of
them."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import cards
from trimtab.artifacts.artifact import Interval
from trimtab.kinds import Similarity
from trimtab_export.variants import retrieval
from trimtab_export.variants.retrieval import Pairs

Floats: TypeAlias = NDArray[np.float32]

RETENTIONS = ("ndcg", "recall", "query_only_ndcg", "query_only_recall")
ERROR = 0.05  # of an interval


@dataclass(frozen=True)
class Vectors:
    """A graph's vectors of the queries and documents of a set of pairs."""

    queries: Floats
    documents: Floats


@dataclass(frozen=True)
class Retention:
    """What is kept over one set: its part of the report card, and the recalls, of which only the worst is
    reported."""

    share: cards.Kept
    source_recall: float
    recall: Interval
    query_only_recall: Interval


def judge(pairs: Pairs, now: Vectors, before: Vectors, whole: Vectors, similarity: Similarity) -> Retention:
    """What the variant's vectors, `now`, keep of the source's, `whole`; `before`: the source's, as wide as
    `now`."""
    ndcg, recall = retrieval.gains(whole.queries, whole.documents, similarity)
    own_ndcg, own_recall = retrieval.gains(now.queries, now.documents, similarity)
    query_ndcg, query_recall = retrieval.gains(now.queries, before.documents, similarity)
    share = cards.Kept(
        name=pairs.name,
        kind=pairs.kind,
        languages=pairs.languages,
        queries=len(pairs.queries),
        documents=len(pairs.documents),
        source_ndcg=round(float(ndcg.mean()), 4),
        ndcg=retrieval.retention(own_ndcg, ndcg),
        query_only_ndcg=retrieval.retention(query_ndcg, ndcg),
    )
    recalls = (retrieval.retention(each, recall) for each in (own_recall, query_recall))
    return Retention(share, round(float(recall.mean()), 4), *recalls)


def least(figures: Iterable[Interval]) -> Interval:
    """The worst of several."""
    return min(figures, key=lambda each: each.value)


def among(card: cards.ReportCard, compared: int) -> cards.ReportCard:
    """The card of a variant that was chosen among so many by these figures, with wider intervals.

    For many intervals to hold together in 95 cases of 100, each one's error is divided by their number
    (Bonferroni); how much wider that makes them follows from a normal distribution.
    """
    figures = card.fidelity
    if figures is None or compared <= 1:
        return card
    wider = NormalDist().inv_cdf(1 - ERROR / 2 / compared) / NormalDist().inv_cdf(1 - ERROR / 2)

    def widened(interval: Interval) -> Interval:
        low, high = (interval.value + wider * (end - interval.value) for end in (interval.low, interval.high))
        return Interval(value=interval.value, low=round(low, 4), high=round(high, 4))

    sets = tuple(
        msgspec.structs.replace(each, ndcg=widened(each.ndcg), query_only_ndcg=widened(each.query_only_ndcg))
        for each in figures.sets
    )
    worst = {name: widened(getattr(figures, name)) for name in RETENTIONS}
    figures = msgspec.structs.replace(figures, sets=sets, compared=compared, **worst)
    return msgspec.structs.replace(card, fidelity=figures)
