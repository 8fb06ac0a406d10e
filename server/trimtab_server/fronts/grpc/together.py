"""Lets calls that come close behind each other go on together.

gRPC hands over one call in each pass of the event loop. Handled one by one, each call finds the caches of its
core full of other code, wakes a device for itself, and is answered by itself, which doubles what a short call
costs (`python -m bench.call_cost`). So a call whose message is there waits while others keep coming, for
three milliseconds at most. A call that nobody follows does not wait, and devices still take whatever is
queued.
"""

import asyncio
import time
from collections.abc import Callable

from trimtab_server import waking

# So many go on at once: in one pass of the loop, during which nobody else is served.
MOST = 32
MOST_SECONDS = 0.003
# From one call to the next, gRPC takes up to so many passes of the loop.
PASSES = 6


class Together:
    """The calls that wait for those behind them. For one event loop; `clock` is like time.monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._came = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._since = 0.0  # when the first of them began to wait
        self._seen = 0  # how many had come when it was last looked
        self._quiet = 0  # passes since the last one came

    def came(self) -> int:
        """A call has come. Returns its number."""
        self._came += 1
        return self._came

    async def wait(self, number: int) -> None:
        """The message of the call with this number is there. Wait while others come, if any came behind
        it."""
        if number == self._came and not self._waiting:
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            self._since, self._seen, self._quiet = self._clock(), self._came, 0
            loop.call_soon(self._look, loop)
        await turn

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """A pass of the loop is over: go on waiting, or let all go on."""
        self._quiet = self._quiet + 1 if self._came == self._seen else 1
        self._seen = self._came
        full = len(self._waiting) >= MOST or self._clock() - self._since > MOST_SECONDS
        if self._quiet <= PASSES and not full:
            waking.give_way()
            loop.call_soon(self._look, loop)
            return
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)
