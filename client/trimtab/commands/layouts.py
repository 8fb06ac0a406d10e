"""The formats of vectors in a file."""

import io
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np

from trimtab.core.answers import Vectors
from trimtab.kinds import Dtype
from trimtab.values.dense import STORAGE


class Layout(Protocol):
    """A format that is written row by row."""

    def header(self, rows: int) -> bytes:
        """The bytes before the rows: equally many for any number of rows."""

    def row(self, index: int, vector: Vectors) -> bytes:
        """One row."""


class Npy:
    """NumPy's own format, written without holding the array in memory."""

    def __init__(self, dtype: Dtype, columns: int) -> None:
        self._storage, self._columns = STORAGE[dtype], columns

    def header(self, rows: int) -> bytes:
        """NumPy pads the header so that its length does not depend on the number of rows."""
        stream = io.BytesIO()
        shape = (rows, self._columns)
        np.lib.format.write_array_header_1_0(
            stream, {"descr": self._storage.str, "fortran_order": False, "shape": shape}
        )
        return stream.getvalue()

    def row(self, index: int, vector: Vectors) -> bytes:
        return vector.astype(self._storage, copy=False).tobytes()


class Jsonl:
    """One JSON object per line: {"row": 0, "embedding": [...]}."""

    def header(self, rows: int) -> bytes:
        return b""

    def row(self, index: int, vector: Vectors) -> bytes:
        return msgspec.json.encode({"row": index, "embedding": vector.tolist()}) + b"\n"


LAYOUTS: dict[str, Callable[[Dtype, int], Layout]] = {".npy": Npy, ".jsonl": lambda dtype, columns: Jsonl()}
