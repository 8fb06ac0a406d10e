"""Calls that cost a client next to nothing, and the server some of its one event loop.

The server answers some of each kind a second, whoever makes them, beside a few of each connection. More of
them wait, and the connection that has had fewest goes first. A call that waits keeps one of the few places of
its connection, so that no more arrive. So such calls take a bounded part of the event loop, over however many
connections they come. The rates are far above those of clients that mean it. Calls that are work are not
paced: the devices, and the turns of the loop, are shared between callers.

Messages that were refused count by their bytes: after them, a connection's next messages are read one after
the other, at a bounded rate.
"""

import asyncio
import time
from collections.abc import Callable

from trimtab_server.turns import Flow, TurnQueue

# Seconds between two answers to calls of a kind, where there are too many: calls that come to nothing (an
# unknown method, without credentials, without a message that can be read), that are taken back before their
# message was read, and that are answered but ask for no vectors (health, metadata).
NOTHING, TAKEN_BACK, CHEAP = 0.004, 0.0025, 0.001
# The generic cell rate algorithm (ITU-T I.371): calls that take so much time may come at once.
BURST_SECONDS = 0.1
# Of each connection so many may come at once, and so many a second, whatever others do.
OWN_BURST, OWN_RATE = 60, 20
# Answers that are due within this time are given together: a timer for each would cost as much as an answer.
TICK_SECONDS = 0.005
# Of messages that are refused, of one connection or of all that have too many of them; and what may come at
# once.
REFUSED_BYTES_PER_SECOND = 32 << 20
REFUSED_BURST_SECONDS = 0.5
# Connections; who was quiet for long is forgotten.
REMEMBERED = 4096


class _Paced:
    """Calls of one kind: those that wait, by connection."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.line: TurnQueue[asyncio.Future[None]] = TurnQueue()
        self.due = float("-inf")  # when all that were answered have had their time
        self.timer: asyncio.TimerHandle | None = None
        self._own: dict[Flow, float] = {}  # the same as `due`, of each connection alone

    def may_begin(self, flow: Flow, now: float) -> bool:
        """Whether a call is answered at once."""
        if not self.line and self.delay(now) <= 0:
            self.began(flow, now)
            return True
        if len(self._own) > REMEMBERED:
            self._own = {each: due for each, due in self._own.items() if due > now}
        due = max(self._own.get(flow, now), now) + 1 / OWN_RATE
        if due > now + OWN_BURST / OWN_RATE + 1e-6:
            return False
        self._own[flow] = due
        return True

    def delay(self, now: float) -> float:
        """Seconds until there is time for one more."""
        return max(self.due, now) + self.seconds - BURST_SECONDS - now

    def began(self, flow: Flow, now: float) -> None:
        """A call is answered."""
        self.due = max(self.due, now) + self.seconds
        self.line.took(flow, self.seconds)


class Pace:
    """When each connection's next such call is answered, and its next message read. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[float, _Paced] = {}
        self._freed = False
        self._refused: dict[str, tuple[float, float]] = {}  # when the next may be read, and what one takes

    def refuse(self, peer: str, size: int) -> None:
        """So many bytes of messages have come over a connection for nothing."""
        now = self._clock()
        if len(self._refused) > REMEMBERED:
            self._refused = {each: known for each, known in self._refused.items() if known[0] > now}
        sharing = 1 + sum(due > now + REFUSED_BURST_SECONDS for due, _ in self._refused.values())
        each = size * sharing / REFUSED_BYTES_PER_SECOND
        due, _ = self._refused.get(peer, (now, 0.0))
        self._refused[peer] = max(due, now) + each, each

    def read_delay(self, peer: str) -> float:
        """Seconds until this connection's next message may be read; it is counted as refused until `took`."""
        if not self._refused or (known := self._refused.get(peer)) is None:
            return 0.0
        (due, each), now = known, self._clock()
        if due < now:
            del self._refused[peer]
            return 0.0
        self._refused[peer] = due + each, each
        return max(0.0, due - now - REFUSED_BURST_SECONDS)

    def took(self, peer: str) -> None:
        """A message of this connection was not refused."""
        known = self._refused.get(peer)
        if known is not None:
            self._refused[peer] = known[0] - known[1], known[1]

    async def wait(self, peer: str, seconds: float) -> None:
        """Until a call of this connection and kind is to be answered; even where it is cancelled meanwhile:
        its place is not free before."""
        if await self.through(peer, seconds):
            raise asyncio.CancelledError

    async def through(self, peer: str, seconds: float) -> bool:
        """The same, and whether it was cancelled meanwhile, instead of raising that."""
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
        """The server drains: nobody waits any more."""
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
