"""Limits the rate of calls that cost a client next to nothing, but take time on the server's one event loop.

Of each kind, the server answers a fixed number of calls a second, over all connections, and a few more of
each connection. Further calls wait, and the connection that has had the fewest goes first. A waiting call
counts against its connection's limit of calls, so that no more arrive. So such calls take a bounded share of
the event loop, over however many connections they come. The rates are far above what well-behaved clients
need. Calls that ask for vectors are not paced: callers share the devices and the turns of the loop anyway.

Refused messages count by their bytes: after one, a connection's next messages are read one at a time, at a
bounded rate.
"""

import asyncio
import time
from collections.abc import Callable

from trimtab_server.turns import Flow, TurnQueue

# Seconds between two answers to calls of a kind, if there are too many: calls that fail (an unknown method,
# no credentials, no readable message), that are cancelled before their message was read, and that are
# answered but ask for no vectors (health, metadata).
FAILED, CANCELLED, CHEAP = 0.004, 0.0025, 0.001
# The burst of the generic cell rate algorithm (ITU-T I.371): calls worth this much time may come at once.
BURST_SECONDS = 0.1
# Each connection's own allowance, whatever others do: a burst of each kind, and a rate a second. Many
# connections may use theirs at once. More calls may be cancelled, since gRPC counts those that wait here as
# open, and would refuse others of the connection.
OWN_BURST, OWN_RATE = {FAILED: 16, CANCELLED: 60, CHEAP: 16}, 2
# Answers due within this time are given together: a timer for each would cost as much as an answer.
TICK_SECONDS = 0.005
# The rate of refused bytes, of one connection or of all that send too many; and the burst.
REFUSED_BYTES_PER_SECOND = 32 << 20
REFUSED_BURST_SECONDS = 0.5
# Connections that are remembered; those that were quiet for long are forgotten.
REMEMBERED = 4096


class _Paced:
    """The waiting calls of one kind, by connection."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.line: TurnQueue[asyncio.Future[None]] = TurnQueue()
        self.due = float("-inf")  # when the calls answered so far have used up their time
        self.timer: asyncio.TimerHandle | None = None
        self._own: dict[Flow, float] = {}  # the same for each connection

    def may_begin(self, flow: Flow, now: float) -> bool:
        """Whether a call may be answered at once."""
        if not self.line and self.delay(now) <= 0:
            self.began(flow, now)
            return True
        if len(self._own) > REMEMBERED:
            self._own = {each: due for each, due in self._own.items() if due > now}
        due = max(self._own.get(flow, now), now) + 1 / OWN_RATE
        if due > now + OWN_BURST[self.seconds] / OWN_RATE + 1e-6:
            return False
        self._own[flow] = due
        return True

    def delay(self, now: float) -> float:
        """Seconds until the next call may be answered."""
        return max(self.due, now) + self.seconds - BURST_SECONDS - now

    def began(self, flow: Flow, now: float) -> None:
        """A call is being answered."""
        self.due = max(self.due, now) + self.seconds
        self.line.took(flow, self.seconds)


class Pacer:
    """Decides when a connection's next cheap call is answered, and its next message read. For one event
    loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[float, _Paced] = {}
        self._freed = False
        # Connections whose messages were refused: when the next may be read, and what one takes.
        self.refused: dict[str, tuple[float, float]] = {}

    def refuse(self, peer: str, size: int) -> None:
        """A connection has sent so many bytes of messages that were refused."""
        now = self._clock()
        if len(self.refused) > REMEMBERED:
            self.refused = {each: known for each, known in self.refused.items() if known[0] > now}
        sharing = 1 + sum(due > now + REFUSED_BURST_SECONDS for due, _ in self.refused.values())
        each = size * sharing / REFUSED_BYTES_PER_SECOND
        due, _ = self.refused.get(peer, (now, 0.0))
        self.refused[peer] = max(due, now) + each, each

    def read_delay(self, peer: str) -> float:
        """Seconds until this connection's next message may be read; it is counted as refused until `took`."""
        if not self.refused or (known := self.refused.get(peer)) is None:
            return 0.0
        (due, each), now = known, self._clock()
        if due < now:
            del self.refused[peer]
            return 0.0
        self.refused[peer] = due + each, each
        return max(0.0, due - now - REFUSED_BURST_SECONDS)

    def took(self, peer: str) -> None:
        """A message of this connection was accepted."""
        known = self.refused.get(peer)
        if known is not None:
            self.refused[peer] = known[0] - known[1], known[1]

    async def wait(self, peer: str, seconds: float) -> None:
        """Wait until a call of this connection and kind may be answered. A cancelled call waits as well: it
        must not free its place sooner."""
        if await self.through(peer, seconds):
            raise asyncio.CancelledError

    async def through(self, peer: str, seconds: float) -> bool:
        """As `wait`, but returns whether the call was cancelled meanwhile, instead of raising."""
        kind, flow = self._kinds.setdefault(seconds, _Paced(seconds)), Flow(peer, small=False)
        if self._freed:
            return False
        if kind.may_begin(flow, self._clock()):
            return False
        turn = asyncio.get_running_loop().create_future()
        kind.line.put(flow, turn)
        self._look_later(kind)
        cancelled = False
        while not turn.done():
            try:
                await asyncio.wait((turn,))
            except asyncio.CancelledError:
                cancelled = True
        return cancelled

    def free(self) -> None:
        """Let everybody through, since the server drains."""
        self._freed = True
        for kind in self._kinds.values():
            while kind.line:
                kind.line.pop()[1].set_result(None)

    def _look_later(self, kind: _Paced) -> None:
        if kind.timer is None:
            delay = max(kind.delay(self._clock()), TICK_SECONDS)
            kind.timer = asyncio.get_running_loop().call_later(delay, self._look, kind)

    def _look(self, kind: _Paced) -> None:
        kind.timer = None
        now = self._clock()
        while kind.line and kind.delay(now) <= 0:
            flow, turn = kind.line.pop()
            kind.began(flow, now)
            turn.set_result(None)
        if kind.line:
            self._look_later(kind)
