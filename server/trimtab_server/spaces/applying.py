"""Applies adapters to the rows of requests: rows that come from a device together are mapped together.

When a batch has run, the event loop wakes every request that waited for one of its rows, and each asks for
its route. Requests of one pass of the loop share a run of the adapters, on a thread; those that come while it
runs share the route's next run. So a map's weights are read once for many rows, and there is no waiting time
to tune. The thread is watched: a graph that hangs holds up only its own route, and is no longer used.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import FailedPrecondition, InternalError, TrimtabError
from trimtab.values.column import Columns
from trimtab_server import limited
from trimtab_server.engine.runners.runner import DeviceLostError
from trimtab_server.outputs.dense import STATES
from trimtab_server.spaces.route import LoadedAdapter, Route, Vectors

# A run hangs if it takes so many times as long as its rows were measured to take, and `hang_seconds`.
HANG_FACTOR = 20.0


@dataclass(frozen=True, eq=False, slots=True)
class _PendingRows:
    rows: Vectors
    group: str
    future: asyncio.Future[Vectors]


class Applier:
    """Applies routes to rows. For one event loop.

    `retire` is called with an adapter that hung or killed its process, and why it must no longer be used.
    """

    def __init__(
        self,
        retire: Callable[[LoadedAdapter, str], None] = lambda loaded, why: None,
        hang_seconds: float = 10.0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._retire = retire
        self._hang_seconds = hang_seconds
        self._waiting: dict[tuple[LoadedAdapter, ...], list[_PendingRows]] = {}
        self._runs: dict[tuple[LoadedAdapter, ...], asyncio.Task[None]] = {}

    async def apply(self, route: Route, result: Columns, column: str, group: str) -> Vectors:
        """Map a column of an encoder's graph, float32 (n, d), into the route's space.

        Raises InternalError if an adapter fails on them; FailedPrecondition if one hangs.
        """
        hops, rows = route.hops, result[column].values
        if not hops:
            return rows
        if hops[0].states_width:
            rows = np.concatenate([rows, result[STATES].values], axis=1)
        if not self._waiting:
            self._loop.call_soon(self._flush)
        waiting = _PendingRows(rows, group, self._loop.create_future())
        self._waiting.setdefault(hops, []).append(waiting)
        return await waiting.future

    def _flush(self) -> None:
        for hops in [hops for hops in self._waiting if hops not in self._runs]:
            waiting = self._waiting.pop(hops)
            self._runs[hops] = asyncio.create_task(self._run(hops, waiting))

    async def _run(self, hops: tuple[LoadedAdapter, ...], waiting: Sequence[_PendingRows]) -> None:
        try:
            wanted = [each for each in waiting if not each.future.done()]
            if wanted:
                await self._apply(hops, wanted)
        finally:
            del self._runs[hops]
            if self._waiting:
                self._loop.call_soon(self._flush)

    async def _apply(self, hops: tuple[LoadedAdapter, ...], wanted: Sequence[_PendingRows]) -> None:
        rows = np.concatenate([each.rows for each in wanted]) if len(wanted) > 1 else wanted[0].rows
        groups = [each.group for each in wanted for _ in range(len(each.rows))]
        predicted = len(rows) * sum(hop.row_seconds for hop in hops)
        run = AdapterRun(hops, rows, groups)
        names = ", ".join(hop.name for hop in hops)
        try:
            seconds = max(self._hang_seconds, HANG_FACTOR * predicted)
            vectors = await limited.run(seconds, f"adapter {names}", run, stop=run.end)
        except (FailedPrecondition, DeviceLostError) as error:
            at = run.at
            self._retire(at, str(error))
            _fail(wanted, FailedPrecondition(f"adapter {at.name} is no longer used: {error}"))
        except Exception as error:  # otherwise those who wait would never know
            if len(wanted) == 1:
                _fail(wanted, error)
            for each in wanted if len(wanted) > 1 else ():
                await self._apply(hops, [each])  # so that only those fail that fail alone
        else:
            _deliver(wanted, vectors)


class AdapterRun:
    """Rows, float32 (n, d), on their way through one adapter after the other; groups[i] is row i's group."""

    def __init__(self, hops: Sequence[LoadedAdapter], rows: Vectors, groups: Sequence[str]) -> None:
        self.at = hops[0]  # where they are
        self._hops = hops
        self._rows = rows
        self._groups = groups

    def __call__(self) -> Vectors:
        rows = self._rows
        for hop in self._hops:
            self.at = hop
            rows = hop.run(rows, self._groups)
        return rows

    def end(self) -> None:
        """Stop the adapter that hangs, if that is possible."""
        self.at.end()


def _deliver(waiting: Sequence[_PendingRows], vectors: Vectors) -> None:
    start = 0
    for each in waiting:
        end = start + len(each.rows)
        if not each.future.done():
            each.future.set_result(vectors[start:end])
        start = end


def _fail(waiting: Sequence[_PendingRows], error: Exception) -> None:
    for each in waiting:
        if not each.future.done():
            # To each its own: raising an error adds to its traceback.
            known = isinstance(error, TrimtabError)
            own = type(error)(str(error)) if known else InternalError(f"adapters failed: {error!r}")
            own.__cause__ = error
            each.future.set_exception(own)
