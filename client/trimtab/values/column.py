"""Columns: one array with the rows of several items, one or more rows each.

A dense vector is one row. The tokens of a text, their vectors, and the entries of a sparse vector take one
row each. A mapping of names to columns is a batch, or a result. This module needs only NumPy and msgspec.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[Any]

_ALL = np.logical_and.reduce  # what `all` calls in the end


class Column(msgspec.Struct, frozen=True, eq=False):
    """The rows of items, one after another along the first axis of `values`.

    Without `offsets`, item i is row i. With them, it is the rows from offsets[i] to offsets[i + 1]; `offsets`
    is int64 (items + 1,), runs from 0 to the number of rows, and never decreases.
    """

    values: Values
    offsets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the numbers take."""
        return self.values.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def item(self, place: int) -> Values:
        """A view of an item: its row, or its rows if items have several."""
        if self.offsets is None:
            row: Values = self.values[place]
            return row
        return self.values[self.offsets[place] : self.offsets[place + 1]]

    def only(self, place: int) -> "Column":
        """A view of the column with only this item."""
        if self.offsets is None:
            return Column(self.values[place : place + 1])
        values = self.item(place)
        return Column(values, np.array((0, len(values)), np.int64))

    def copy(self) -> "Column":
        """The same numbers in their own read-only memory."""
        values, offsets = self.values.copy(), self.offsets
        values.flags.writeable = False
        return Column(values, None if offsets is None else offsets.copy())

    @property
    def finite(self) -> bool:
        """Whether no number is infinite or NaN."""
        return self.values.dtype.kind not in "fc" or bool(_ALL(np.isfinite(self.values), axis=None))


Columns: TypeAlias = Mapping[str, Column]


def stacked(items: Sequence[Values]) -> Column:
    """A column of items with several rows each."""
    if len(items) == 1:
        return Column(items[0], np.array((0, len(items[0])), np.int64))
    offsets = np.zeros(len(items) + 1, np.int64)
    np.cumsum([len(item) for item in items], out=offsets[1:])
    return Column(np.concatenate(items), offsets)


def gathered(parts: Sequence[tuple[Columns, int]], names: Sequence[str]) -> Columns:
    """Columns with these names; item i is item number parts[i][1] of the columns parts[i][0].

    Columns with the same name must have the same dtype and row shape. For a single part, views are returned.
    """
    if len(parts) == 1:
        columns, place = parts[0]
        return {name: columns[name].only(place) for name in names}
    # Many rows come from one result, so copying row by row would take many times as long.
    sources: dict[int, tuple[Columns, list[int], list[int]]] = {}
    for row, (columns, place) in enumerate(parts):
        _, rows, places = sources.setdefault(id(columns), (columns, [], []))
        rows.append(row)
        places.append(place)
    result = {}
    for name in names:
        first = parts[0][0][name]
        if first.offsets is not None:
            result[name] = stacked([columns[name].item(place) for columns, place in parts])
            continue
        values = np.empty((len(parts), *first.values.shape[1:]), first.values.dtype)
        for columns, rows, places in sources.values():
            values[rows] = columns[name].values[places]
        result[name] = Column(values)
    return result
