"""Channels that reach far beyond the others are divided, and their weights multiplied by the same factor.

All channels of an input share one step of 255, so that one which reaches to 25 leaves the others, of some
tenths, only a few steps. Source: SmoothQuant (Xiao et al., 2023, arXiv:2211.10438). How much of the reach is
moved into the weights is chosen for each input by the error that both roundings are expected to make.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab_export.passes.ranges import Range

Floats: TypeAlias = NDArray[np.float32]

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of a channel's reach that is moved
WORTH = 0.5  # of the error must go, or the input stays as it is: the division takes time
STEPS = 255  # of an input of 8 bits
WEIGHT_STEPS = 127  # to each side, of a weight
LEAST = 1e-5


def factors(measured: Range, weights: Sequence[Floats]) -> Floats | None:
    """What each channel is divided by, (in,) around 1; None where that gains little.

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
    """The expected square error of the products, by the rounding of the divided input and of the weights.

    An error of rounding is as if drawn evenly from one step: its variance is the step's square over 12.

    Args:
        step: of the divided input, where it is not that of its whole range.
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
