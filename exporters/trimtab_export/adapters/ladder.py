"""The closed-form rungs, from the identity to a ridge on inner states.

Each takes the new encoder's rows x (n, d_in) and the old one's rows y (n, d_out) of the same texts, float32,
and returns a Map. If the spaces compare by cosine, the rows of y have length 1, and those of x are normalised
when read. A rectangular matrix maps between unequal dimensions: the same as padding the smaller with zeros.
"""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import AdapterError
from trimtab_export.adapters.maps import Groups, Map
from trimtab_export.adapters.metrics import unit as unit_rows

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

PENALTIES = np.logspace(-6, 2, 33)  # of the mean eigenvalue of x'x
SHRINKAGE = 50.0  # rows at which a group's own shift counts half


@dataclass(frozen=True, slots=True)
class Fit:
    """A rung's training data: rows of both encoders, and how its map reads and writes them.

    first, last: the columns of x that are read. weights: each row's weight, mean 1.
    """

    x: Floats
    y: Floats
    weights: Floats
    unit_input: bool
    unit_output: bool
    first: int
    last: int

    @property
    def read(self) -> Floats:
        """The columns of x that are read, as the map reads them."""
        rows = self.x[:, self.first : self.last]
        return unit_rows(rows) if self.unit_input else rows

    def map(self, weight: NDArray[np.floating] | None, shift: NDArray[np.floating]) -> Map:
        """The map with this matrix and shift."""
        return Map(
            width=self.x.shape[1],
            first=self.first,
            last=self.last,
            unit_input=self.unit_input,
            unit_output=self.unit_output,
            weight=None if weight is None else weight.astype(np.float32),
            shift=shift.astype(np.float32),
        )


def fit_identity(fit: Fit) -> Map:
    """y = x: the floor, the same as a naive swap."""
    _same_dimensions(fit)
    return fit.map(None, np.zeros(fit.y.shape[1]))


def fit_mean_shift(fit: Fit) -> Map:
    """y = x + mean(y - x): Query Drift Compensation (Goswami et al., 2025), the shift of the new queries."""
    _same_dimensions(fit)
    return fit.map(None, _mean(fit.y - fit.read, fit.weights))


def fit_procrustes(fit: Fit, *, centred: bool = False, scaled: bool = False) -> Map:
    """y = s (x - mean x) R + mean y, R orthogonal (Schoenemann, 1966).

    For unequal dimensions, R has orthonormal rows or columns: the same as padding the smaller with zeros.
    """
    x, y = fit.read, fit.y
    origin_x, origin_y = _centres(fit) if centred else (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
    rotation, strength = _rotation(x - origin_x, y - origin_y, fit.weights)
    scale = strength / float((fit.weights[:, None] * (x - origin_x) ** 2).sum()) if scaled else 1.0
    return fit.map(scale * rotation, origin_y - scale * (origin_x @ rotation))


def fit_whitening(fit: Fit) -> Map:
    """Whiten x, rotate, apply the covariance of y (Artetxe et al., 2018; CORAL: Sun et al., 2016)."""
    origin_x, origin_y = _centres(fit)
    x, y = fit.read - origin_x, fit.y - origin_y
    whiten, _ = _roots(x, fit.weights)
    whiten_y, colour = _roots(y, fit.weights)
    rotation, _ = _rotation(x @ whiten, y @ whiten_y, fit.weights)
    weight = whiten @ rotation @ colour
    return fit.map(weight, origin_y - origin_x @ weight)


def fit_ridge(fit: Fit, *, toward_rotation: bool = False) -> Map:
    """y = x W + b, with |W|^2 (or |W - R|^2, R the centred rotation) penalised.

    The penalty minimises the generalised cross-validation error (Golub, Heath and Wahba, 1979).
    """
    origin_x, origin_y = _centres(fit)
    x, y = fit.read - origin_x, fit.y - origin_y
    start = _rotation(x, y, fit.weights)[0] if toward_rotation else None
    weight = _ridge(x, y if start is None else y - x @ start, fit.weights)
    weight = weight if start is None else weight + start
    return fit.map(weight, origin_y - origin_x @ weight)


def fit_low_rank(fit: Fit, rank: int = 32) -> Map:
    """y = x + x U V' + b, or the same after the rotation, whichever leaves the smaller residual.

    Reduced-rank regression of the residual (Izenman, 1975), in the shape of LoRA (Hu et al., 2022).
    """
    origin_x, origin_y = _centres(fit)
    x, y = fit.read - origin_x, fit.y - origin_y
    starts = [_rotation(x, y, fit.weights)[0]]
    if x.shape[1] == y.shape[1]:
        starts.append(np.eye(x.shape[1]))
    weights = []
    for start in starts:
        correction = _ridge(x, y - x @ start, fit.weights)
        fitted = np.sqrt(fit.weights)[:, None] * (x @ correction)
        kept = np.linalg.eigh(fitted.T @ fitted)[1][:, -rank:]
        weights.append(start + correction @ kept @ kept.T)
    weight = min(weights, key=lambda each: _error(x @ each, y, fit))
    return fit.map(weight, origin_y - origin_x @ weight)


def fit_inner_ridge(fit: Fit) -> Map:
    """Ridge on standardised pooled states of all layers, which hold what the last layer has lost."""
    origin_x, origin_y = _centres(fit)
    x, y = fit.x[:, fit.first : fit.last] - origin_x, fit.y - origin_y
    spread = np.sqrt(_mean(x**2, fit.weights)) + 1e-6
    weight = _ridge(x / spread, y, fit.weights)
    weight = weight / spread[:, None]
    return fit.map(weight, origin_y - origin_x @ weight)


def fit_group_shift(fit: Fit, base: Map, groups: Groups, count: int) -> Map:
    """`base` with a shift for each of `count` groups: the group's mean error, shrunk toward zero.

    The fewer rows a group has, the more its shift shrinks (James and Stein, 1961).
    """
    if base.unit_output:
        raw = replace(base, unit_output=False)
        lengths = np.linalg.norm(raw(fit.x), axis=1)
        gaps = fit.y * lengths.mean() - raw(fit.x)
    else:
        gaps = fit.y - base(fit.x)
    table = np.zeros((count + 1, fit.y.shape[1]), np.float32)
    for group in range(1, count + 1):
        own = gaps[groups == group]
        table[group] = own.sum(axis=0) / (len(own) + SHRINKAGE)
    return replace(base, groups=table)


def _ridge(x: Doubles | Floats, y: Doubles | Floats, weights: Floats) -> Doubles:
    """The ridge solution (d_in, d_out) with the least GCV error."""
    root = np.sqrt(weights)[:, None].astype(np.float32)
    x, y = (root * x).astype(np.float32), (root * y).astype(np.float32)
    values, vectors = np.linalg.eigh((x.T @ x).astype(np.float64))
    values = np.maximum(values, 0)
    projected = vectors.T @ (x.T @ y).astype(np.float64)
    energy = (projected**2).sum(axis=1)
    total, rows = float((y.astype(np.float64) ** 2).sum()), len(x)

    def error(penalty: float) -> float:
        inverse = 1 / (values + penalty)
        left = total - float((energy * (2 * inverse - values * inverse**2)).sum())
        free = rows - float((values * inverse).sum())
        return left / free**2 if free > 1 else np.inf

    penalties = PENALTIES * values.mean()
    best = float(min(penalties, key=error))
    weight: Doubles = vectors @ (projected / (values + best)[:, None])
    return weight


def _rotation(x: NDArray[np.floating], y: NDArray[np.floating], weights: Floats) -> tuple[Doubles, float]:
    """The orthogonal (or rectangular orthonormal) R of the least |xR - y|, and the sum of singular values."""
    left, strengths, right = np.linalg.svd(
        (weights[:, None] * x).T.astype(np.float64) @ y, full_matrices=False
    )
    return left @ right, float(strengths.sum())


def _roots(rows: NDArray[np.floating], weights: Floats) -> tuple[Doubles, Doubles]:
    """The inverse and the plain square root of the rows' covariance, with a floor under small directions."""
    covariance = (weights[:, None] * rows).T.astype(np.float64) @ rows / len(rows)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 1e-3 * values.mean())
    return vectors / np.sqrt(values) @ vectors.T, vectors * np.sqrt(values) @ vectors.T


def _centres(fit: Fit) -> tuple[Doubles, Doubles]:
    return _mean(fit.read, fit.weights), _mean(fit.y, fit.weights)


def _mean(rows: NDArray[np.floating], weights: Floats) -> Doubles:
    result: Doubles = np.average(rows, axis=0, weights=weights.astype(np.float64))
    return result


def _error(x: NDArray[np.floating], y: NDArray[np.floating], fit: Fit) -> float:
    return float((fit.weights[:, None] * (x - y) ** 2).sum())


def _same_dimensions(fit: Fit) -> None:
    if fit.last - fit.first != fit.y.shape[1]:
        raise AdapterError(f"a shift needs equal dimensions, not {fit.last - fit.first} and {fit.y.shape[1]}")
