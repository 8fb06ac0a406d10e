"""Retrieval metrics from the ranks of the right documents, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.adapter import Quality
from trimtab.artifacts.artifact import Interval
from trimtab.errors import AdapterError
from trimtab.kinds import Similarity

Floats: TypeAlias = NDArray[np.float32]
Integers: TypeAlias = NDArray[np.int64]

CUTS = (1, 10, 100)
SAMPLES = 1000
CONFIDENCE = 0.95
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Ranks:
    """For pairs of a query and a right document: the query's row, and the document's rank from 0, the best.

    `relevant`: the number of right documents of each query, at least one.
    """

    query: Integers
    rank: Integers
    relevant: Integers


@dataclass(frozen=True, slots=True)
class Index:
    """Documents prepared so that a larger product with a query means a better match."""

    rows: Floats  # (documents, d) or one column more
    similarity: Similarity


def index(vectors: Floats, similarity: Similarity) -> Index:
    """The documents' vectors, float32 (n, d), as the index of an encoder of this similarity."""
    if similarity == "cosine":
        return Index(unit(vectors), similarity)
    if similarity == "dot":
        return Index(np.ascontiguousarray(vectors, np.float32), similarity)
    if similarity == "euclidean":  # -|q - d|^2 ranks as 2 q.d - |d|^2
        halves = (vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True) / 2
        return Index(np.hstack([vectors, -halves]).astype(np.float32), similarity)
    raise AdapterError(
        f"the target space compares by {similarity}; adapters support cosine, dot and euclidean"
    )


def scores(queries: Floats, documents: Index) -> Floats:
    """How well each document answers each query, float32 (queries, documents)."""
    if documents.similarity == "cosine":
        queries = unit(queries)
    elif documents.similarity == "euclidean":
        queries = np.hstack([queries, np.ones((len(queries), 1), np.float32)])
    result: Floats = queries @ documents.rows.T
    return result


def unit(vectors: Floats) -> Floats:
    """Rows scaled to length 1; a row of zeros stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result


def ranks(queries: Floats, documents: Index, right: Sequence[Sequence[int]]) -> Ranks:
    """The ranks of each query's right documents. Ties count against them: all-equal vectors lose."""
    owners, places = [], []
    for start in range(0, len(queries), CHUNK):
        block = scores(queries[start : start + CHUNK], documents)
        for offset, row in enumerate(block):
            wanted = np.asarray(right[start + offset], dtype=np.int64)
            owners.append(np.full(len(wanted), start + offset))
            places.append(_places(row, wanted))
    return _ranks(owners, places, right)


def cascade(
    first: Floats,
    index_of_first: Index,
    then: Floats,
    index_of_then: Index,
    right: Sequence[Sequence[int]],
    depth: int,
) -> tuple[Ranks, NDArray[np.float64]]:
    """Ranks when `first` fetches `depth` candidates and `then` orders them; and the share fetched.

    first, then: the same queries in two spaces, each with its index of the same documents. The second result
    is, for each query, the share of its right documents among the candidates.
    """
    owners, places, within = [], [], []
    for start in range(0, len(first), CHUNK):
        fetched = scores(first[start : start + CHUNK], index_of_first)
        ordered = scores(then[start : start + CHUNK], index_of_then)
        count = fetched.shape[1]
        kept = min(depth, count)
        candidates = np.argpartition(fetched, -kept, axis=1)[:, -kept:]
        for offset in range(len(fetched)):
            row = np.full(count, -np.inf, np.float32)
            row[candidates[offset]] = ordered[offset, candidates[offset]]
            wanted = np.asarray(right[start + offset], dtype=np.int64)
            within.append(float(np.isin(wanted, candidates[offset]).mean()))
            owners.append(np.full(len(wanted), start + offset))
            places.append(_places(row, wanted))
    return _ranks(owners, places, right), np.array(within)


def recall(found: Ranks, cut: int) -> NDArray[np.float64]:
    """Recall@cut of each query: the share of its right documents among the first `cut`."""
    hits = np.bincount(found.query, weights=found.rank < cut, minlength=len(found.relevant))
    result: NDArray[np.float64] = hits / np.minimum(found.relevant, cut)
    return result


def ndcg(found: Ranks, cut: int = 10) -> NDArray[np.float64]:
    """nDCG@cut of each query; all right documents count the same (Jarvelin and Kekalainen, 2002)."""
    gains = np.where(found.rank < cut, 1 / np.log2(found.rank + 2.0), 0.0)
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(cut) + 2.0))])
    total = np.bincount(found.query, weights=gains, minlength=len(found.relevant))
    result: NDArray[np.float64] = total / discounts[np.minimum(found.relevant, cut)]
    return result


def quality(found: Ranks) -> Quality:
    """The means over the queries."""
    one, ten, hundred = (float(recall(found, cut).mean()) for cut in CUTS)
    return Quality(recall_1=one, recall_10=ten, recall_100=hundred, ndcg_10=float(ndcg(found).mean()))


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> Interval:
    """mean(above) / mean(below) over the same queries, with its paired bootstrap interval."""
    drawn = _draws(len(above))
    return _interval(
        _divide(above.mean(), below.mean()), _divide(above[drawn].mean(axis=1), below[drawn].mean(axis=1))
    )


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> Interval:
    """mean(one - other) over the same queries, with its paired bootstrap interval (Koehn, 2004)."""
    gaps = one - other
    return _interval(gaps.mean(), gaps[_draws(len(gaps))].mean(axis=1))


def _places(row: Floats, wanted: Integers) -> Integers:
    """How many documents rank before each wanted one; right documents are ordered by their scores."""
    # NaN never matches: comparisons with it are always false.
    ahead = (~(row[None, :] < row[wanted, None])).sum(axis=1) - 1
    right_ahead = (~(row[wanted][None, :] < row[wanted][:, None])).sum(axis=1) - 1
    order = np.empty_like(ahead)
    order[np.argsort(ahead, kind="stable")] = np.arange(len(ahead))
    places: Integers = ahead - right_ahead + order
    return places


def _ranks(owners: list[Integers], places: list[Integers], right: Sequence[Sequence[int]]) -> Ranks:
    return Ranks(
        query=np.concatenate(owners),
        rank=np.concatenate(places),
        relevant=np.array([len(each) for each in right], dtype=np.int64),
    )


def _draws(count: int) -> Integers:
    return np.random.default_rng(0).integers(0, count, size=(SAMPLES, count))


def _divide(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros_like(np.asarray(above, np.float64)), where=below > 0)


def _interval(value: NDArray[np.float64], samples: NDArray[np.float64]) -> Interval:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(samples, [tail, 100 - tail])
    return Interval(value=float(value), low=float(low), high=float(high))
