"""Adapters applied to the rows of requests: those whose rows come from a device together go through together.

When a batch has run, the event loop wakes every request that waited for a row of it, and each asks for its
route. What asks in one turn of the loop is one run of the adapters in the next: a map's weights are read once
for all of its rows, and there is no time to wait and nothing to tune.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import InternalError
from trimtab_server.spaces.adapters import Loaded, Route, Vectors

# A run that should take longer than this, in seconds, goes to a thread: the event loop has others to serve.
INLINE_SECONDS = 0.004


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting:
    rows: Vectors
    group: str
    future: asyncio.Future[Vectors]


class Applier:
    """Applies routes to rows. For one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[tuple[Loaded, ...], list[_Waiting]] = {}
        self._runs: set[asyncio.Task[None]] = set()

    async def apply(self, route: Route, rows: Vectors, dimensions: int, group: str) -> Vectors:
        """Rows of an encoder's graph, embedding first, float32 (n, d), as vectors of the route's space.

        Raises InternalError where an adapter fails on them.
        """
        hops = route.hops
        if not hops:
            return rows[:, :dimensions]
        if not hops[0].states_width:
            rows = rows[:, :dimensions]
        if not self._waiting:
            self._loop.call_soon(self._flush)
        waiting = _Waiting(rows, group, self._loop.create_future())
        self._waiting.setdefault(hops, []).append(waiting)
        return await waiting.future

    def _flush(self) -> None:
        everything, self._waiting = self._waiting, {}
        for hops, waiting in everything.items():
            wanted = [each for each in waiting if not each.future.done()]
            if not wanted:
                continue
            try:
                self._run(hops, wanted)
            except Exception as error:  # nobody else would tell those who wait
                _fail(wanted, error)

    def _run(self, hops: tuple[Loaded, ...], wanted: Sequence[_Waiting]) -> None:
        rows = np.concatenate([each.rows for each in wanted]) if len(wanted) > 1 else wanted[0].rows
        groups = [each.group for each in wanted for _ in range(len(each.rows))]
        if len(rows) * sum(hop.row_seconds for hop in hops) <= INLINE_SECONDS:
            _deliver(wanted, run(hops, rows, groups))
            return
        task = asyncio.create_task(self._in_thread(hops, rows, groups, wanted))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    async def _in_thread(
        self, hops: tuple[Loaded, ...], rows: Vectors, groups: Sequence[str], wanted: Sequence[_Waiting]
    ) -> None:
        try:
            _deliver(wanted, await asyncio.to_thread(run, hops, rows, groups))
        except Exception as error:  # as above
            _fail(wanted, error)


def run(hops: Sequence[Loaded], rows: Vectors, groups: Sequence[str]) -> Vectors:
    """The rows, float32 (n, d), through one adapter after the other; groups[i] is the group of row i."""
    for hop in hops:
        rows = hop.run(rows, groups)
    return rows


def _deliver(waiting: Sequence[_Waiting], vectors: Vectors) -> None:
    start = 0
    for each in waiting:
        end = start + len(each.rows)
        if not each.future.done():
            each.future.set_result(vectors[start:end])
        start = end


def _fail(waiting: Sequence[_Waiting], error: Exception) -> None:
    for each in waiting:
        if not each.future.done():
            # To each its own: an error collects where it was raised.
            own = InternalError(
                str(error) if isinstance(error, InternalError) else f"adapters failed: {error!r}"
            )
            own.__cause__ = error
            each.future.set_exception(own)
