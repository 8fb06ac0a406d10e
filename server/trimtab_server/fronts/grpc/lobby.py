"""Where calls wait that gRPC has handed over, while it has many more.

gRPC hands calls over one by one, in the order in which they came, whoever sent them. If each were answered
before the next is taken up, a caller with one call would wait for the thousands that others sent before. So
when many calls come at once, the loop alternates between taking them up, which costs a tenth of answering
them, and letting some of them in. Those that wait are let in by connection, and a connection with few calls
does not wait behind those with many.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from trimtab_server.turns import Turns

# So many calls may follow each other with no longer pauses before calls have to wait: as many as a connection
# may have at a time are nothing unusual.
FREE, PAUSE_SECONDS = 128, 0.05
# The loop takes calls up until fewer than so many come in a tick; if more wait, gRPC hands over several.
# In a tick it sleeps, if it has nothing else to do, since gRPC's own threads may need its processor.
TICK_SECONDS, MANY = 0.001, 2
# It does so for no longer than this; then, calls are let in for as long as this, one in each pass.
LISTEN_SECONDS, WORK_SECONDS = 0.05, 0.0025
# So many of a connection's calls wait in the first line.
FEW = 4


class Lobby:
    """Lets calls in, by connection. For one event loop.

    The first few waiting calls of each connection are let in in the order in which they came. The others wait
    behind their connection's name, and connections take turns. If there are calls of both kinds, they
    alternate. While calls are taken up, `turns` does no large work.
    """

    def __init__(self, turns: Turns, clock: Callable[[], float] = time.monotonic) -> None:
        self._turns = turns
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._last = 0.0  # when a call arrived
        self._came = 0  # calls that followed each other, or that came in this tick
        self._full = False  # calls have to wait
        self._until = 0.0  # when the loop does the other thing
        self._freed = False
        self._first: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of their turns
        self._waiting: dict[str, int] = {}  # of each connection that has any
        self._from_first = False  # who was last

    def arrived(self) -> bool:
        """A call has arrived: whether it has to wait."""
        if self._freed:
            return False
        if self._full:
            self._came += 1
            return True
        now = self._clock()
        self._came = self._came + 1 if now - self._last < PAUSE_SECONDS else 1
        self._last = now
        if self._came > FREE:
            self._full = True
            self._listen()
        return self._full

    async def wait(self, peer: str) -> None:
        """Wait until a call of this connection is let in."""
        turn = self._loop.create_future()
        waiting = self._waiting[peer] = self._waiting.get(peer, 0) + 1
        if waiting <= FEW:
            self._first.append((peer, turn))
        else:
            self._lines.setdefault(peer, deque()).append(turn)
        await turn

    def free(self) -> None:
        """Let everybody in, since the server drains."""
        self._freed = True
        while self._waiting:
            self._let_in()

    def _listen(self) -> None:
        """Take calls up, and do no large work."""
        self._turns.hold()
        self._until = self._clock() + LISTEN_SECONDS
        self._came = 0
        self._loop.call_later(TICK_SECONDS, self._heard)

    def _heard(self) -> None:
        now = self._clock()
        if self._came >= MANY and now < self._until:
            self._came = 0
            self._loop.call_later(TICK_SECONDS, self._heard)
            return
        self._turns.release()
        self._until = now + WORK_SECONDS
        self._work()

    def _work(self) -> None:
        """Let a call in, and another one when the loop has done what it can for this one."""
        self._let_in()
        if not self._waiting:
            self._full, self._came = False, 0
        elif self._clock() < self._until:
            self._loop.call_soon(self._work)
        else:
            self._listen()

    def _let_in(self) -> None:
        """Let in the call whose turn it is; those that were cancelled have left."""
        while self._waiting:
            peer, turn = self._next()
            self._waiting[peer] -= 1
            if not self._waiting[peer]:
                del self._waiting[peer]
            if not turn.done():
                turn.set_result(None)
                return

    def _next(self) -> tuple[str, "asyncio.Future[None]"]:
        self._from_first = bool(self._first) and not (self._from_first and self._lines)
        if self._from_first:
            return self._first.popleft()
        peer = next(iter(self._lines))
        line = self._lines.pop(peer)
        turn = line.popleft()
        if line:
            self._lines[peer] = line  # behind the others
        return peer, turn
