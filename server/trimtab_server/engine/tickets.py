"""What a request holds of the engine: where its rows go, and who waits for them."""

import asyncio
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InternalError, TrimtabError
from trimtab_server.engine.batch import Item, Model


class Computed(msgspec.Struct, frozen=True):
    """The vectors of one request, float32 (n, dimensions), and the seconds they waited and took."""

    vectors: NDArray[np.float32]
    queue_seconds: float
    compute_seconds: float


class Ticket:
    """One request's stake in the engine. Once its request waits, the event loop alone touches it."""

    def __init__(
        self, model: Model, texts: int, deadline: float | None, now: float, future: asyncio.Future[None]
    ) -> None:
        self.deadline = deadline
        self.items: list[Item] = []  # that it waits for; those it shares with others may be here twice
        self.left = texts  # rows
        self.queued = 0  # of them: that nobody else waited for
        self.remembered = 0  # of them: they were computed before
        self._vectors = np.empty((texts, model.dimensions), np.float32)
        self._future = future
        self._added = now
        self._begun: float | None = None  # when the first of its texts went to a device
        self._ended = now

    def remember(self, row: int, vector: NDArray[np.float32]) -> None:
        """A text of this row was computed before: the row is there at once."""
        self.remembered += 1
        self._vectors[row] = vector
        self._filled(1, self._added)

    def fill(self, rows: Sequence[int], vector: NDArray[np.float32], begun: float, now: float) -> None:
        """A text of these rows was computed, from `begun` to `now`."""
        if self._future.done():  # cancelled, expired or failed meanwhile: nobody wants the row
            return
        self._vectors[rows[0] if len(rows) == 1 else list(rows)] = vector
        begun = max(begun, self._added)  # it may have run already when this request joined it
        self._begun = begun if self._begun is None else min(self._begun, begun)
        self._filled(len(rows), now)

    def fail(self, rows: Sequence[int], error: Exception) -> None:
        """A text of these rows cannot be computed: the request has failed."""
        if self._future.done():
            return
        if isinstance(error, TrimtabError):
            own = type(error)(str(error))  # an error collects where it was raised: to each request its own
        else:
            own = InternalError(f"the encoder failed on texts[{rows[0]}]: {type(error).__name__}")
            own.__cause__ = error
        self._future.set_exception(own)

    def give_up(self) -> None:
        """Nobody waits any more, nor wants to know what it has failed with."""
        if self._future.done() and not self._future.cancelled():
            self._future.exception()

    @property
    def done(self) -> bool:
        """Whether it has all of its rows, or has failed."""
        return self._future.done()

    async def wait(self) -> Computed:
        """Wait until every row is filled; raises what one of them has failed with."""
        await self._future
        begun = self._ended if self._begun is None else self._begun
        return Computed(self._vectors, begun - self._added, self._ended - begun)

    def _filled(self, rows: int, now: float) -> None:
        self.left -= rows
        if not self.left:
            self._ended = now
            self._future.set_result(None)
