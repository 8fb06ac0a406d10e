"""Calls that cost a client next to nothing, and the server some of its one event loop.

A client may make some of each kind a second over each connection; the answers to more of them wait. A call
that waits keeps one of the few places of its connection, so that no more come. The rates are far above
those of clients that mean it, also of a gateway that makes its users' calls over one connection. Calls that
are work are not paced: the devices are shared between tenants.
"""

import asyncio
import time

# Seconds of a connection's time that each call takes: one that comes to nothing (an unknown method, without
# credentials, without a message that can be read), one that is taken back before its message was read, and
# one that is answered but asks for no vectors (health, metadata). Each kind has a clock of its own.
NOTHING, TAKEN_BACK, CHEAP = 0.008, 0.00125, 0.001
# The generic cell rate algorithm (ITU-T I.371): calls that take so much time may come at once.
BURST_SECONDS = 0.5
# 128 calls, as many as a connection has by default, wait one after the other up to this.
LONGEST_SECONDS = 1.1
# Connections and kinds of calls; who was quiet for long is forgotten.
REMEMBERED = 4096


class Pace:
    """When the next such call of each connection may be answered."""

    def __init__(self) -> None:
        self._due: dict[tuple[str, float], float] = {}

    def delay(self, peer: str, cost: float, now: float) -> float:
        """Seconds until one more call of this connection and cost may be answered."""
        if len(self._due) > REMEMBERED:
            self._due = {each: due for each, due in self._due.items() if due > now}
        due = max(self._due.get((peer, cost), now), now) + cost
        self._due[peer, cost] = due = min(due, now + BURST_SECONDS + LONGEST_SECONDS)
        return max(0.0, due - now - BURST_SECONDS)

    async def wait(self, peer: str, cost: float) -> None:
        """Until that time, even where the call is cancelled meanwhile: its place is not free before."""
        if await self.through(peer, cost):
            raise asyncio.CancelledError

    async def through(self, peer: str, cost: float) -> bool:
        """The same, and whether it was cancelled meanwhile, instead of raising that."""
        now = time.monotonic()
        delay, cancelled = self.delay(peer, cost, now), False
        until = now + delay
        while delay > 0:
            try:
                await asyncio.sleep(delay)
            except asyncio.CancelledError:
                cancelled = True
            delay = until - time.monotonic()
        return cancelled
