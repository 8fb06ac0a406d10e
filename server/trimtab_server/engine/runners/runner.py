"""What runs a graph, as the engine knows it, and what can be wrong with it."""

from typing import Protocol

import numpy as np

from trimtab.values.column import Column, Columns
from trimtab_server.engine.batch import Model, OutputSpec, Wanted


class UnusableError(Exception):
    """The device that a configuration names cannot be used; the message says why, and what to do."""


class GraphError(Exception):
    """A graph that is not what its manifest says; the message says how, and what to do."""


class NotReopenedError(Exception):
    """A graph that was loaded cannot be opened again, in a process that began anew; the message says why."""


class DeviceLostError(Exception):
    """The process that ran the graphs of a device is gone, and with it what it was doing."""


class Runner(Protocol):
    """A loaded graph. `run` may be called from several threads at once."""

    def run(self, batch: Columns, wanted: Wanted) -> Columns:
        """The wanted outputs of items, in their order; the items are as their input's kind has prepared
        them."""


def checked(result: Columns, model: Model, wanted: Wanted, items: int) -> Columns:
    """A runner's result, if it is what the model says; otherwise GraphError, which names both."""
    for spec in model.specs(wanted):
        column = result.get(spec.name)
        if column is None:
            raise GraphError(f"the graph gave no {spec.name}, but {', '.join(result) or 'nothing'}")
        _check(column, spec, items)
    return result


def _check(column: Column, spec: OutputSpec, items: int) -> None:
    values, offsets = column.values, column.offsets
    rows = len(values) if spec.several else items
    shape = (rows, spec.width) if spec.width else (rows,)
    if values.dtype != spec.dtype or values.shape != shape:
        raise GraphError(
            f"the graph gave {values.dtype} {values.shape} instead of {spec.dtype} {shape} as {spec.name}"
        )
    if (offsets is not None) is not spec.several:
        raise GraphError(
            f"the graph gave {'one row' if spec.several else 'several rows'} per item as {spec.name}"
        )
    if offsets is not None and not _in_order(offsets, items, rows):
        raise GraphError(
            f"the graph gave offsets that do not split {rows} rows into {items} items as {spec.name}"
        )
    if offsets is not None and spec.most and np.diff(offsets).max(initial=0) > spec.most:
        raise GraphError(
            f"the graph gave an item {np.diff(offsets).max()} rows as {spec.name}, and its manifest says at "
            f"most {spec.most}"
        )


def _in_order(offsets: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", items: int, rows: int) -> bool:
    return (
        offsets.dtype == np.int64
        and offsets.shape == (items + 1,)
        and offsets[0] == 0
        and offsets[-1] == rows
        and bool((np.diff(offsets) >= 0).all())
    )
