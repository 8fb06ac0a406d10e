"""The formats of vectors in a file."""

import io
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from trimtab.commands.description import Description
from trimtab.core.answers import Vectors
from trimtab.kinds import Dtype
from trimtab.values.dense import STORAGE


class Layout(Protocol):
    """A format that is written row by row."""

    def header(self, rows: int) -> bytes:
        """The bytes before the rows: equally many for any number of rows."""

    def row(self, index: int, value: Any) -> bytes:
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


class NamedJsonl:
    """One JSON object per line, with a field for each output, such as {"row": 0, "dense": [...],
    "sparse": {"indices": [...], "values": [...]}, "multi_vector": [[...], ...]}."""

    def header(self, rows: int) -> bytes:
        return b""

    def row(self, index: int, value: dict[str, Any]) -> bytes:
        return msgspec.json.encode({"row": index, **value}) + b"\n"


def jsonl(*, named: bool) -> Layout:
    """The format of lines of JSON, with an encoder's vectors or with outputs that are named."""
    return NamedJsonl() if named else Jsonl()


SUFFIXES = (".npy", ".jsonl")


def layout_of(output: Path, vectors: Description) -> Layout:
    """The format of a file of these vectors."""
    if output.suffix == ".npy":
        return Npy(vectors.dtype, vectors.columns)
    return jsonl(named=vectors.outputs is not None)
