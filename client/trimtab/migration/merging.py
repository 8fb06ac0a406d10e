"""The two halves of a migration as one list.

Scores of two spaces are not comparable, and their relation for one query cannot be learned from the few
documents that are in both halves at first. So only like is compared with like: documents with a known
similarity in the new space ("known") by that, the others by their adapted scores. The old half's own list, in
which every document has a place, decides which places belong to which of the two. So for every j, the first j
hits contain the same unknown documents as the first j of the old half, and equally many known ones, but these
are the nearest of all that are known. Therefore they contain at least as many of the nearest documents of the
new space as the old half alone finds. When all documents are known, the order is that of the new space.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trimtab.stores.base import Hit
from trimtab.stores.ids import Id


@dataclass(slots=True)
class _Place:
    """A place in the list: the hit there, and the adapted score that belongs to the place."""

    hit: Hit
    adapted: float | None
    known: bool


def one_list(near: Sequence[Hit], known: Sequence[Hit], unknown: Collection[Id], k: int) -> list[Hit]:
    """The k best of both halves, each document once, best first.

    near: the old half's candidates with their adapted scores, best first.
    known: hits with their scores in the new space, in any order, each document once.
    unknown: the ids of the documents in `near` with no known score in the new space. Their hits get an
        estimate that keeps the order; if no score at all is known, the adapted ones stay.
    """
    places = _places(near, iter(sorted(known, key=lambda hit: -hit.score)), unknown, k)
    return _on_one_scale(places)


def _places(near: Sequence[Hit], nearest: Iterator[Hit], unknown: Collection[Id], k: int) -> list[_Place]:
    places: list[_Place] = []
    shown: set[Id] = set()
    for hit in near:
        if len(places) == k:
            break
        best = None if hit.id in unknown else next(nearest, None)
        # An approximate index may find fewer than there are; then the document itself takes the place.
        here = _Place(hit, hit.score, known=False) if best is None else _Place(best, hit.score, known=True)
        if here.hit.id not in shown:
            places.append(here)
            shown.add(here.hit.id)
    places.extend(_Place(hit, None, known=True) for hit in nearest)
    return places[:k]


def _on_one_scale(places: Sequence[_Place]) -> list[Hit]:
    """The hits. Unknown scores are replaced by estimates that keep the order."""
    pairs = [(each.adapted, each.hit.score) for each in places if each.known and each.adapted is not None]
    if not pairs:
        return [each.hit for each in places]
    adapted, native = np.array(pairs[::-1], np.float64).T  # rising
    spread = np.ptp(adapted)
    slope = np.ptp(native) / spread if spread > 0 else 1.0
    floors = np.maximum.accumulate([each.hit.score if each.known else -np.inf for each in places][::-1])[::-1]
    hits: list[Hit] = []
    for place, floor in zip(places, floors.tolist(), strict=True):
        score = place.hit.score
        if not place.known:
            inside = min(max(score, adapted[0]), adapted[-1])
            score = float(np.interp(inside, adapted, native) + slope * (score - inside))
            score = max(min(score, hits[-1].score) if hits else score, floor)
        hits.append(replace(place.hit, score=score))
    return hits
