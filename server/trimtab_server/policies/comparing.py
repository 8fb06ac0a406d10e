"""How far apart two versions of an encoder are, by the texts that both have embedded. Sans-IO.

Vectors of two spaces cannot be compared, but which texts are neighbours can, within each space. A text's
nearest neighbours among the last few hundred texts are found in both, and the share that they have in common
is the overlap (Wang et al., 2022, on the instability of embeddings' neighbourhoods): 1 where both rank alike,
K / RESERVOIR where they are unrelated.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab_server.spaces.drift import SAME, unit

Vector = NDArray[np.float32]

# Texts whose neighbours are looked for, and how many neighbours.
RESERVOIR = 256
NEIGHBOURS = 10
# With fewer texts than this, nearly all of them are neighbours.
FEWEST = 100


@dataclass(frozen=True, slots=True)
class Agreement:
    """What one text showed. `cosine`: of its two vectors, if they are equally wide; `overlap`: of its
    neighbours, once there are enough texts."""

    cosine: float | None
    overlap: float | None


class Comparison:
    """The last texts, in both spaces. Not thread-safe. `old` and `new`: dimensions of the two versions."""

    def __init__(self, old: int, new: int) -> None:
        self._old = np.zeros((RESERVOIR, old), np.float32)
        self._new = np.zeros((RESERVOIR, new), np.float32)
        self._filled = 0
        self._next = 0

    def add(self, old: Vector, new: Vector) -> Agreement | None:
        """Compare a text's vectors, float32 (old,) and (new,); None if the same text is among the last
        ones."""
        old, new = unit(old[None])[0], unit(new[None])[0]
        near_old = self._old[: self._filled] @ old
        if self._filled and near_old.max() > SAME:
            return None
        overlap = None
        if self._filled >= FEWEST:
            near_new = self._new[: self._filled] @ new
            first, second = (np.argpartition(-near, NEIGHBOURS)[:NEIGHBOURS] for near in (near_old, near_new))
            overlap = len(np.intersect1d(first, second)) / NEIGHBOURS
        self._old[self._next], self._new[self._next] = old, new
        self._next = (self._next + 1) % RESERVOIR
        self._filled = min(self._filled + 1, RESERVOIR)
        return Agreement(float(old @ new) if len(old) == len(new) else None, overlap)
