"""Calls that cost a client next to nothing, and the server some of its one event loop.

A client may make some of each kind a second over each connection; the answers to more of them wait. A call
that waits keeps one of the few places of its connection, so that no more come. Where several connections have
too many, they share what one would have: ten of them cost the others no more than one. The rates are far
above those of clients that mean it, also of a gateway that makes its users' calls over one connection. Calls
that are work are not paced: the devices, and the turns of the loop, are shared between callers.

Messages that were refused count by their bytes: after them, a connection's next messages are read one after
the other, at a bounded rate.
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
# Where connections share a rate, each waits as many times longer as there are of them, up to this.
MOST_SHARING = 4
# Connections and kinds of calls; who was quiet for long is forgotten.
REMEMBERED = 4096
# Between two looks at who has too many.
LOOK_SECONDS = 0.1
# Of messages that are refused, of one connection or of all that have too many of them.
REFUSED_BYTES_PER_SECOND = 32 << 20


class Pace:
    """When the next such call of each connection may be answered, and its next message be read."""

    def __init__(self) -> None:
        self._due: dict[tuple[str, float], float] = {}
        self._late: dict[float, set[str]] = {}  # who had too many of a kind at the last look or since
        self._looked = float("-inf")
        self._refused: dict[str, tuple[float, float]] = {}  # when the next may be read, and what one takes

    def delay(self, peer: str, cost: float, now: float) -> float:
        """Seconds until one more call of this connection and cost may be answered."""
        if len(self._due) > REMEMBERED:
            self._due = {each: due for each, due in self._due.items() if due > now}
        due = max(self._due.get((peer, cost), now), now) + cost
        if due <= now + BURST_SECONDS:
            self._due[peer, cost] = due
            return 0.0
        others = len(self._sharing(cost, now) | {peer}) - 1
        self._late.setdefault(cost, set()).add(peer)
        most = BURST_SECONDS + LONGEST_SECONDS * min(1 + others, MOST_SHARING)
        self._due[peer, cost] = due = min(due + others * cost, now + most)
        return due - now - BURST_SECONDS

    def refuse(self, peer: str, size: int, now: float) -> None:
        """A message of so many bytes was read for nothing."""
        if len(self._refused) > REMEMBERED:
            self._refused = {each: known for each, known in self._refused.items() if known[0] > now}
        sharing = 1 + sum(due > now + BURST_SECONDS for due, _ in self._refused.values())
        each = size * sharing / REFUSED_BYTES_PER_SECOND
        due, _ = self._refused.get(peer, (now, 0.0))
        self._refused[peer] = max(due, now) + each, each

    def read_delay(self, peer: str, now: float) -> float:
        """Seconds until this connection's next message may be read; it is counted as refused until `took`."""
        if not self._refused or (known := self._refused.get(peer)) is None:
            return 0.0
        due, each = known
        if due < now:
            del self._refused[peer]
            return 0.0
        self._refused[peer] = due + each, each
        return max(0.0, due - now - BURST_SECONDS)

    def took(self, peer: str) -> None:
        """A message of this connection was not refused."""
        known = self._refused.get(peer)
        if known is not None:
            self._refused[peer] = known[0] - known[1], known[1]

    def _sharing(self, cost: float, now: float) -> set[str]:
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            for kind, peers in self._late.items():
                until = now + BURST_SECONDS
                self._late[kind] = {peer for peer in peers if self._due.get((peer, kind), 0.0) > until}
        return self._late.get(cost, set())

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
