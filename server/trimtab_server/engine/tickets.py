"""A request's record in the engine: which items it waits for, and which rows they fill."""

import asyncio
from collections.abc import Sequence

from trimtab.errors import TrimtabError
from trimtab.values.column import Columns, gathered
from trimtab_server.engine.batch import Item, Wanted
from trimtab_server.engine.port import Computed, ItemError
from trimtab_server.turns import INLINE_BYTES


class Ticket:
    """One request's record in the engine. Once the request waits, only the event loop touches it."""

    def __init__(
        self, wanted: Wanted, rows: int, deadline: float | None, now: float, future: asyncio.Future[None]
    ) -> None:
        self.deadline = deadline
        self.items: list[Item] = []  # that it waits for; one that fills several rows is here several times
        self.left = rows
        self.queued = 0  # rows whose items it queued itself
        self.cached = 0  # rows that were in the cache
        self.wanted = wanted
        # For each row, the result that it is in, and its position there.
        self._parts: list[tuple[Columns, int]] = [({}, 0)] * rows
        self.future = future  # is done when every row is filled; its error is what an item has failed with
        self._added = now
        self._begun: float | None = None  # when the first of its items went to a device
        self._ended = now

    def fill_from_cache(self, row: int, result: Columns) -> None:
        """The item of this row was in the cache."""
        self.cached += 1
        self._parts[row] = result, 0
        self._filled(1, self._added)

    def fill(self, rows: Sequence[int], result: Columns, place: int, begun: float, now: float) -> None:
        """The item of these rows was computed, from `begun` to `now`, and is at position `place` of a
        result."""
        if self.future.done():  # cancelled, expired or failed meanwhile: nobody wants the row
            return
        part = result, place
        for row in rows:
            self._parts[row] = part
        begun = max(begun, self._added)  # it may have run already when this request joined it
        self._begun = begun if self._begun is None else min(self._begun, begun)
        self._filled(len(rows), now)

    def fail(self, rows: Sequence[int], error: Exception) -> None:
        """The item of these rows cannot be computed: the request has failed."""
        if self.future.done():
            return
        if isinstance(error, TrimtabError):
            own = type(error)(str(error))  # to each request its own: raising an error adds to its traceback
        else:
            own = ItemError(rows[0], type(error).__name__)
            own.__cause__ = error
        self.future.set_exception(own)

    def give_up(self) -> None:
        """Nobody waits for it any longer: mark its error as seen."""
        if self.future.done() and not self.future.cancelled():
            self.future.exception()

    @property
    def done(self) -> bool:
        """Whether it has all of its rows, or has failed."""
        return self.future.done()

    @property
    def large(self) -> bool:
        """Whether its rows, all of which are filled, take long to copy into one result."""
        if len(self._parts) == 1:  # nothing is copied
            return False
        size, first = 0, self._parts[0][0]
        for name in self.wanted:
            if first[name].offsets is None:  # all are of one size
                size += len(self._parts) * first[name].item(0).nbytes
            else:
                size += sum([columns[name].item(row).nbytes for columns, row in self._parts])
        return size > INLINE_BYTES

    def computed(self) -> Computed:
        """Its rows, all of which are filled."""
        begun = self._ended if self._begun is None else self._begun
        return Computed(gathered(self._parts, self.wanted), begun - self._added, self._ended - begun)

    def _filled(self, rows: int, now: float) -> None:
        self.left -= rows
        if not self.left:
            self._ended = now
            self.future.set_result(None)
