"""Are live queries still like those that an adapter was judged on? A streaming statistic, sans-IO.

Every window of live queries is compared with the calibration queries in two ways, each by a one-sided
rank-sum test (Wilcoxon 1945; Mann and Whitney 1947), which assumes nothing about the values' distribution:

- *depth*: D(x) = 1 + x . mu, where mu is the mean of the calibration queries, all of length 1: the angular
  depth of text embeddings of Seegmiller and Preotiuc-Pietro (2023), by the cosine distance. Queries off the
  main direction of the calibration queries lie less deep. It sees only that direction, hence
- *distance*: to the nearest calibration query, against the calibration queries' distances to one another.

Both values of a calibration query leave the query itself out, as if it were new. A query that is repeated
within a window counts once: popular queries would otherwise look like drift.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import AdapterError

Matrix = NDArray[np.float32]

# Queries in a window: a few hundred live queries fill several.
WINDOW = 100
# How often similar queries may look different, in each of the two tests: in all, for at most twice as many
# windows.
LEVEL = 0.001
# With fewer calibration queries, the tests are too weak.
FEWEST = 50
# A query that is nearer than this, in cosine, to another of its window repeats it.
SAME = 1 - 1e-5


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What one window showed. The z's count standard errors: above 0, the live queries are less like the
    others."""

    depth_z: float
    distance_z: float
    distance: float  # 1 - cosine to the nearest calibration query, the median of the window
    alarm: bool


class Baseline:
    """The calibration queries, float (m, d), with their depths and distances.

    Raises AdapterError if they are too few, or not vectors.
    """

    def __init__(self, queries: NDArray[np.floating]) -> None:
        if queries.ndim != 2 or len(queries) < FEWEST:
            raise AdapterError(
                f"{len(queries)} calibration queries are too few to watch for drift: fit the adapter on "
                f"{FEWEST} or more"
            )
        self._queries = unit(queries.astype(np.float32))
        self.dimensions = queries.shape[1]
        count = len(queries)
        total = self._queries.sum(axis=0)
        self._mean = total / count
        depths = 1 + (self._queries @ total - 1) / (count - 1)
        self._depths = np.sort(depths)
        cosines = self._queries @ self._queries.T
        np.fill_diagonal(cosines, -np.inf)
        self._distances = np.sort(1 - cosines.max(axis=1))

    def judge(self, rows: Matrix) -> DriftReport:
        """Compare live queries, float32 (n, d) of length 1, with these."""
        distances = 1 - (rows @ self._queries.T).max(axis=1)
        depth_z = -rank_sum(1 + rows @ self._mean, self._depths)
        distance_z = rank_sum(distances, self._distances)
        alarm = min(one_sided(depth_z), one_sided(distance_z)) < LEVEL
        return DriftReport(depth_z, distance_z, float(np.median(distances)), alarm)


class Drift:
    """Gathers live queries into windows. Not thread-safe."""

    def __init__(self, baseline: Baseline) -> None:
        self._baseline = baseline
        self._window = np.empty((WINDOW, baseline.dimensions), np.float32)
        self._filled = 0

    def add(self, rows: Matrix) -> list[DriftReport]:
        """See live queries, float32 (n, d) in the source space. Returns what each window showed that they
        filled."""
        reports = []
        for row in unit(rows):
            seen = self._window[: self._filled]
            if self._filled and float((seen @ row).max()) > SAME:
                continue
            self._window[self._filled] = row
            self._filled += 1
            if self._filled == WINDOW:
                reports.append(self._baseline.judge(self._window))
                self._filled = 0
        return reports


def unit(rows: Matrix) -> Matrix:
    """The rows scaled to length 1."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    result: Matrix = rows / np.maximum(lengths, 1e-12)
    return result


def rank_sum(sample: NDArray[np.floating], ordered: NDArray[np.floating]) -> float:
    """The rank-sum statistic of `sample`, (n,), against a reference in ascending order, (m,), as a z.

    Above 0 if the sample's values are larger; for two samples of one distribution it is about normal, with
    mean 0 and deviation 1. Ties count half, and are taken out of the variance.
    """
    n, m = len(sample), len(ordered)
    below = np.searchsorted(ordered, sample, side="left")
    up_to = np.searchsorted(ordered, sample, side="right")
    wins = float((below + up_to).sum()) / 2
    _, ties = np.unique(np.concatenate([sample, ordered]), return_counts=True)
    total = n + m
    tied = float((ties.astype(np.float64) ** 3 - ties).sum()) / (total * (total - 1))
    variance = n * m / 12 * (total + 1 - tied)
    return 0.0 if variance <= 0 else (wins - n * m / 2) / math.sqrt(variance)


def one_sided(z: float) -> float:
    """How probable a z as large as this, or larger, is by chance."""
    return math.erfc(z / math.sqrt(2)) / 2
