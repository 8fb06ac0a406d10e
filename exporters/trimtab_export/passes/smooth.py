"""Divides channels with a large range, and multiplies their weights by the same factor: SmoothQuant.

All channels of an input share 255 steps, so a channel that reaches 25 leaves only a few steps to others that
reach some tenths. Source: Xiao et al., 2023, arXiv:2211.10438. How much of the range moves into the weights
is chosen for each input, by the expected error of both roundings.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab_export.passes.ranges import Range

Floats: TypeAlias = NDArray[np.float32]

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of a channel's reach that is moved
WORTH = 0.5  # the error must fall below this share, or the input stays as it is: dividing takes time
STEPS = 255  # of an input of 8 bits
WEIGHT_STEPS = 127  # to each side, of a weight
LEAST = 1e-5


def factors(measured: Range, weights: Sequence[Floats]) -> Floats | None:
    """The factors that channels are divided by, (in,), around 1; None if that gains little.

    Args:
        measured: the input's range.
        weights: of all the layers that read the input, each (in, out).
    """
    reach = np.maximum(measured.reach, LEAST)
    largest = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), LEAST)
    tried = []
    for share in SHARES:
        raw = reach**share / largest ** (1 - share)
        found = (raw / np.exp(np.log(raw).mean())).astype(np.float32)
        tried.append((error(measured, weights, found), found))
    best, chosen = min(tried, key=lambda each: each[0])
    return chosen if best < WORTH * error(measured, weights, np.ones_like(reach)) else None


def error(measured: Range, weights: Sequence[Floats], factors: Floats, step: float | None = None) -> float:
    """The products' expected square error, from rounding the divided input and the weights.

    A rounding error is uniform over one step, so its variance is the squared step over 12.

    Args:
        step: of the divided input, if it is not that of its whole range.
    """
    divided = measured.divided(factors)
    low, high = divided.ends
    step = (high - low) / STEPS if step is None else step
    found = 0.0
    for weight in weights:
        moved = weight * factors[:, None]
        weight_steps = np.abs(moved).max(axis=0) / WEIGHT_STEPS
        found += step**2 * float(np.square(moved).sum())
        found += float(np.square(weight_steps).sum()) * float(divided.power.sum())
    return found / 12
