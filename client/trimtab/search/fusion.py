"""Several searches' hits as one list, by their ranks or by their scores.

Scores of different outputs are not comparable: a cosine ends at 1, a sum over terms does not end. Fusion by
ranks does not look at them. Fusion by scores first maps those of each search to 0..1, from its last hit to
its first (min-max). So it does not matter in which unit a search counts, nor where it begins, and no bounds
need be known, which sparse scores do not have. A document that a search did not find counts as much as its
last hit: it is not nearer than that, and nothing else is known about it. Standard scores (the mean and the
deviation) would need a value for such documents, and depend more on how many hits were asked for.

Sources: Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods", SIGIR 2009; Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval",
TOIS 2023, for the convex combination of scores between the least and the largest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InvalidArgument
from trimtab.stores.base import Hit
from trimtab.stores.ids import Id

CONSTANT = 60.0  # Cormack et al. found that it hardly matters; others took theirs over
Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """What one search said about a document: its rank there, from 1, and its score."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class FusedHit(Hit):
    """A document that one or more searches found.

    score: the fused score, which the order follows. parts: what each search that found the document said.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)


def by_ranks(
    searches: Mapping[str, Sequence[Hit]],
    k: int,
    *,
    weights: Mapping[str, float] | None = None,
    constant: float = CONSTANT,
) -> list[FusedHit]:
    """The k best documents of several searches by reciprocal rank fusion, best first.

    A document's score is the sum of weight / (constant + rank) over the searches that found it.

    searches: by a name for each, its hits, best first. weights: by the same names; 1 where none is given.
    constant: the larger it is, the less the first ranks stand out.
    Among equal scores, the document with the better best rank comes first, then the one that was listed
    first. Raises InvalidArgument if a search has a document twice, or if k, a weight or the constant makes no
    sense.
    """
    if not (np.isfinite(constant) and constant >= 0):
        raise InvalidArgument(f"constant is {constant}; give a number from 0, such as {CONSTANT:g}")
    table = _Table(searches)
    parts = _weights(searches, weights)[:, None] / (constant + table.ranks)
    return table.best(parts.sum(axis=0), k)


def by_scores(
    searches: Mapping[str, Sequence[Hit]], k: int, *, weights: Mapping[str, float] | None = None
) -> list[FusedHit]:
    """The k best documents of several searches by the weighted mean of their scores, best first.

    The scores of each search are mapped to 0..1 linearly, its last hit to 0 and its first to 1; if all its
    scores are equal, to 1. A document that a search did not find has 0 there. So fused scores are in 0..1,
    and those of two queries are not comparable.

    searches: by a name for each, its hits, best first. weights: by the same names; 1 where none is given.
    Ties and errors are as in `by_ranks`; a score that is not finite is an error as well.
    """
    table, shares = _Table(searches), _weights(searches, weights)
    spread = np.zeros((len(searches), len(table)), np.float64)
    for row, (name, hits) in zip(spread, searches.items(), strict=True):
        row[table.places[name]] = _spread(name, hits)
    return table.best(shares @ spread / max(shares.sum(), np.finfo(np.float64).tiny), k)


class _Table:
    """The documents of all searches, each once. `ranks` is (searches, documents); inf: not found.

    places: for each search, the columns of its hits.
    """

    def __init__(self, searches: Mapping[str, Sequence[Hit]]) -> None:
        columns: dict[Id, int] = {}
        self._hits: list[Hit] = []
        self._parts: list[dict[str, Part]] = []
        self.places: dict[str, list[int]] = {}
        for name, hits in searches.items():
            for rank, hit in enumerate(hits, 1):
                column = columns.setdefault(hit.id, len(columns))
                if column == len(self._hits):
                    self._hits.append(hit)
                    self._parts.append({})
                elif name in self._parts[column]:
                    raise InvalidArgument(f"the search {name!r} has document {hit.id!r} twice; give it once")
                self._parts[column][name] = Part(rank, hit.score)
            self.places[name] = [columns[hit.id] for hit in hits]
        self.ranks: Numbers = np.full((len(searches), len(columns)), np.inf)
        for row, places in zip(self.ranks, self.places.values(), strict=True):
            row[places] = np.arange(1, len(places) + 1)

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self._hits)

    def best(self, scores: Numbers, k: int) -> list[FusedHit]:
        """The k documents with the largest scores."""
        if k < 1:
            raise InvalidArgument(f"k is {k}; ask for at least 1")
        if not len(self):
            return []
        order = np.lexsort((self.ranks.min(axis=0), -scores))[:k]  # stable: then as listed
        return [
            FusedHit(self._hits[at].id, self._hits[at].text, float(scores[at]), self._parts[at])
            for at in order.tolist()
        ]


def _weights(searches: Mapping[str, Sequence[Hit]], given: Mapping[str, float] | None) -> Numbers:
    """The searches' weights, in their order."""
    given = given or {}
    for name, weight in given.items():
        if name not in searches:
            raise InvalidArgument(
                f"weights names {name!r}, and there is no such search; there are {', '.join(searches)}"
            )
        if not (np.isfinite(weight) and weight >= 0):
            raise InvalidArgument(f"the weight of {name!r} is {weight}; give a number from 0")
    weights = np.array([given.get(name, 1.0) for name in searches], np.float64)
    if len(weights) and not weights.any():
        raise InvalidArgument("all weights are 0; give one search a weight above 0")
    return weights


def _spread(name: str, hits: Sequence[Hit]) -> Numbers:
    """The scores of a search between 0 and 1."""
    scores = np.array([hit.score for hit in hits], np.float64)
    if not np.isfinite(scores).all():
        first = hits[int(np.isfinite(scores).argmin())]
        raise InvalidArgument(f"the search {name!r} gives document {first.id!r} the score {first.score}")
    if not len(scores) or scores.max() == scores.min():
        return np.ones(len(scores))
    fresh: Numbers = (scores - scores.min()) / (scores.max() - scores.min())
    return fresh
