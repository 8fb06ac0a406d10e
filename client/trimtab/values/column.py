"""Columns: what is known of several items, one or several rows each, in one array.

A dense vector is one row. The tokens of a text, their vectors, or the entries of a sparse vector are as many
rows as there are. A mapping of names to columns is a batch, or a result. NumPy alone is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Column:
    """The rows of items, one after the other along the first axis of `values`.

    Item i is row i; where `offsets`, int64 (items + 1,) from 0 to the number of rows and never falling, are
    given, it is the rows from offsets[i] to offsets[i + 1].
    """

    values: Values
    offsets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """What the numbers take in memory."""
        return self.values.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def item(self, place: int) -> Values:
        """An item: its row, or its rows where an item has several. A view."""
        if self.offsets is None:
            row: Values = self.values[place]
            return row
        return self.values[self.offsets[place] : self.offsets[place + 1]]

    def only(self, place: int) -> "Column":
        """The column of one item alone. A view."""
        if self.offsets is None:
            return Column(self.values[place : place + 1])
        values = self.item(place)
        return Column(values, np.array((0, len(values)), np.int64))

    def copy(self) -> "Column":
        """The same numbers in memory of their own, which nobody may write to."""
        values, offsets = self.values.copy(), self.offsets
        values.flags.writeable = False
        return Column(values, None if offsets is None else offsets.copy())

    @property
    def finite(self) -> bool:
        """Whether no number is infinite or none at all."""
        return self.values.dtype.kind not in "fc" or bool(np.isfinite(self.values).all())


Columns: TypeAlias = Mapping[str, Column]


def stacked(items: Sequence[Values]) -> Column:
    """A column of items of several rows each."""
    if len(items) == 1:
        return Column(items[0], np.array((0, len(items[0])), np.int64))
    offsets = np.zeros(len(items) + 1, np.int64)
    np.cumsum([len(item) for item in items], out=offsets[1:])
    return Column(np.concatenate(items), offsets)


def gathered(parts: Sequence[tuple[Columns, int]], names: Sequence[str]) -> Columns:
    """Columns of these names, whose item i is the one at the place parts[i][1] of the columns parts[i][0].

    Columns of one name must be alike: of one dtype, and of rows of one shape. Of one part alone, views.
    """
    if len(parts) == 1:
        columns, place = parts[0]
        return {name: columns[name].only(place) for name in names}
    # Row by row would take many times as long where many come from one result, as they do.
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
