"""The tokens of a text as a role's reading arranges them: a marker put in, filled up, some without a vector.

The server and the exporter's check arrange them with the same code.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.inputs.text import ATTENDED, GIVES, Reading


class Arranger:
    """Arranges texts of one role."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.room = reading.most - (reading.marker is not None)  # for a text's own tokens and special ones
        # By id; everything beyond it gives a vector.
        self._gives = np.full(max(reading.skipped, default=0) + 2, GIVES, np.uint8)
        self._gives[list(reading.skipped)] = 0

    def __call__(self, ids: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        """What a graph's input is made of: `ids`, int32, and `marks`, uint8, for each token."""
        reading = self.reading
        if reading.marker is not None:
            ids = np.concatenate([ids[:1], np.array([reading.marker], np.int32), ids[1:]])
        marks = self._gives[np.minimum(ids, len(self._gives) - 1)] | ATTENDED
        short = reading.most - len(ids)
        if reading.fill is not None and short > 0:
            mark = GIVES | (ATTENDED if reading.attended else 0)
            ids = np.concatenate([ids, np.full(short, reading.fill, np.int32)])
            marks = np.concatenate([marks, np.full(short, mark, np.uint8)])
        return {"ids": ids, "marks": marks.astype(np.uint8)}
