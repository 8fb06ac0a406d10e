"""The calibrator: maps scores of adapted queries to the scale of the old encoder's scores."""

from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from trimtab.artifacts.adapter import Calibrator
from trimtab_export.adapters.metrics import Index, scores

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

BEST = 20  # documents per query whose scores are compared: the top ones, which an application looks at,
RANDOM = 20  # and as many others, for the lower end of the scale
KNOTS = 33
LEAST_SLOPE = 1e-3  # of the mean slope: keeps the order even if the scores say nothing


def fit_calibrator(adapted: Floats, old: Floats, documents: Index) -> Calibrator | None:
    """Isotonic regression (Ayer et al., 1955) of old scores on adapted ones, made strictly increasing.

    adapted, old: the same queries through the adapter and by the old encoder, float32 (n, d). None if all
    adapted scores are equal.
    """
    found, wanted = scores(adapted, documents), scores(old, documents)
    columns = found.shape[1]
    best = np.argpartition(found, -min(BEST, columns), axis=1)[:, -min(BEST, columns) :]
    others = np.random.default_rng(0).integers(0, columns, size=(len(found), RANDOM))
    chosen = np.concatenate([best, others], axis=1)
    given = np.take_along_axis(found, chosen, axis=1).ravel().astype(np.float64)
    target = np.take_along_axis(wanted, chosen, axis=1).ravel().astype(np.float64)
    return monotone(given, target)


def monotone(given: Doubles, target: Doubles) -> Calibrator | None:
    """A strictly increasing, piecewise linear fit of `target` on `given`; None if `given` is constant."""
    order = np.argsort(given, kind="stable")
    given, target = given[order], target[order]
    fitted = isotonic_regression(target).x
    places = np.unique(np.linspace(0, len(given) - 1, KNOTS).astype(np.int64))
    knots: list[tuple[float, float]] = []
    edges = [0, *((places[1:] + places[:-1] + 1) // 2), len(given)]
    for start, stop in pairwise(edges):
        if stop > start:
            knots.append((float(given[start:stop].mean()), float(fitted[start:stop].mean())))
    span = knots[-1][0] - knots[0][0]
    if not span > 1e-9:
        return None
    slope = LEAST_SLOPE * max((knots[-1][1] - knots[0][1]) / span, 1e-3)
    adapted, mapped = [knots[0][0]], [knots[0][1]]
    for at, value in knots[1:]:
        if at - adapted[-1] > 1e-6 * span:
            adapted.append(at)
            mapped.append(max(value, mapped[-1] + slope * (at - adapted[-2])))
    return Calibrator(adapted=tuple(adapted), target=tuple(mapped)) if len(adapted) > 1 else None
