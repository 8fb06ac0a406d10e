"""A check for passages that are near all kinds of queries, before they are put into an index.

Anyone who can add passages to an index can add some that are near many queries, and so are shown for them,
whatever they say: corpus poisoning (Zhong et al. 2023, arXiv:2310.19156). Such a passage is a hub
(Radovanovic et al. 2010, "Hubs in Space", JMLR 11); ordinary passages show how much of a hub a passage
normally is. A passage made for a single query (PoisonedRAG, arXiv:2402.07867) is not a hub and is not found.
docs/security.md has figures.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab.errors import InvalidArgument

TOP = 10  # how many results a search shows


class HubnessGuard:
    """Flags passages that would be shown to more queries than nearly all ordinary passages.

    queries: vectors of sentinel queries, (m, d), of the kinds that users ask; a few hundred. Anyone who knows
        them can avoid them.
    passages: vectors of ordinary passages, (n, d), as they are in the index. One half is searched, the other
        half sets the threshold.
    false_alarms: the share of ordinary passages that may be flagged.

    All vectors are of one space, and compared by dot product. Raises InvalidArgument if they do not fit
    together, or are too few for the share of false alarms.
    """

    def __init__(self, queries: ArrayLike, passages: ArrayLike, *, false_alarms: float = 0.01) -> None:
        self._queries = _matrix(queries, "queries")
        ordinary = _matrix(passages, "passages", self._queries.shape[1])
        if not 0 < false_alarms < 1:
            raise InvalidArgument(f"false_alarms is {false_alarms}; give a share above 0 and below 1")
        needed = 2 * max(TOP, round(1 / false_alarms))
        if len(ordinary) < needed or not len(self._queries):
            raise InvalidArgument(
                f"there are {len(self._queries)} queries and {len(ordinary)} passages; for false alarms of "
                f"{false_alarms:g} give at least {needed} passages, and some hundreds of queries"
            )
        # Every other one, since they may be sorted by topic.
        shown = self._queries @ ordinary[::2].T
        self._last_shown = np.partition(shown, -TOP, axis=1)[:, -TOP]
        self.threshold = float(np.quantile(self.reach(ordinary[1::2]), 1 - false_alarms, method="higher"))

    def reach(self, passages: ArrayLike) -> NDArray[np.float64]:
        """For each passage, the share of sentinel queries that would show it among the first ten: (k,)."""
        vectors = _matrix(passages, "passages", self._queries.shape[1])
        return np.asarray((vectors @ self._queries.T > self._last_shown).mean(axis=1), np.float64)

    def suspicious(self, passages: ArrayLike) -> NDArray[np.bool_]:
        """Which of the passages, (k, d), reach more queries than ordinary passages do: (k,)."""
        return np.asarray(self.reach(passages) > self.threshold, np.bool_)


def _matrix(vectors: ArrayLike, name: str, columns: int | None = None) -> NDArray[np.float32]:
    matrix = np.asarray(vectors, np.float32)
    if matrix.ndim != 2 or (columns is not None and matrix.shape[1] != columns):
        wanted = f"(n, {columns})" if columns is not None else "(n, d)"
        raise InvalidArgument(f"{name} have the shape {matrix.shape}; vectors of one space are {wanted}")
    return matrix
