"""Whose turn it is on the event loop, which all calls share: start-time fair queueing, by measured time.

Long work is done in pieces, and each piece waits for its caller's turn (Goyal, Vin and Cheng, 1996, as in the
batcher for devices). A caller's own pieces run one after another, however many it has; callers that have had
less than their share go first. So a caller with one request waits only for the piece that runs, not for what
others have queued. Calls with small messages do not wait at all; while there are any, large work gets a
smaller share. If nobody has to wait, a turn costs a few comparisons.
"""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Generic, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
W = TypeVar("W")

# Larger messages count as large.
SMALL_BYTES = 16 << 10
# Texts queued, or rows answered, in one piece: some tenths of a millisecond. A small call needs the loop some
# eight times until it is answered, and each time may have to wait for another's piece.
PIECE = 32
# Numbers of more bytes than this are gone through on a thread: NumPy lets the loop go on meanwhile.
INLINE_BYTES = 1 << 20
# The share of small calls, while there are any, relative to large work's.
SMALL_SHARE = 16.0
# How much work of large calls one pass of the loop starts before it looks at what has arrived.
PASS_SECONDS = 0.00025
# Callers that are remembered at least; with more, those that have had no more than their share are forgotten.
REMEMBERED = 1024


class Next(Enum):
    """What work in pieces may yield: the next piece is too long for the loop, and is done on a thread."""

    LONG = "long"


class Flow(NamedTuple):
    """Calls that share a part of the loop's time: a caller's small calls, or its large ones."""

    caller: Hashable
    small: bool


class _FlowState(Generic[W]):
    __slots__ = ("due", "expected", "waiting")

    def __init__(self) -> None:
        self.due = 0.0  # virtual time at which it will have had its share
        self.expected = 0.0  # how long its next piece should take, as its last one did
        self.waiting: deque[W] = deque()


class TurnQueue(Generic[W]):
    """Waiting work by flow; flows are ordered by when they will have had their share. Sans-IO."""

    def __init__(self) -> None:
        self._now = 0.0  # virtual time: the due time of the last piece started
        self._accounts: dict[Flow, _FlowState[W]] = {}
        self._first: list[
            tuple[float, int, Flow]
        ] = []  # a heap: one entry for each flow that has any waiting
        self._number = 0

    def __len__(self) -> int:
        return len(self._first)

    def is_next(self, flow: Flow) -> bool:
        """Whether new work of this flow would go before all that waits."""
        if not self._first:
            return True
        account = self._accounts.get(flow)
        if account is not None and account.waiting:
            return False
        return max(self._now, account.due if account else 0.0) < self._top()[0]

    def put(self, flow: Flow, what: W) -> None:
        """Queue work, behind all else of its flow."""
        account = self._account(flow)
        account.waiting.append(what)
        if len(account.waiting) == 1:
            self._enter(flow, account)

    def pop(self) -> tuple[Flow, W]:
        """The work whose turn it is, with its flow; it counts as started."""
        flow = self._top()[2]
        heapq.heappop(self._first)
        account = self._accounts[flow]
        what = account.waiting.popleft()
        self.begin(flow)
        if account.waiting:
            self._enter(flow, account)
        return flow, what

    def begin(self, flow: Flow) -> None:
        """A piece of this flow starts; it should take as long as the last one."""
        account = self._account(flow)
        self._now = max(self._now, account.due)
        account.due = self._now + account.expected

    def took(self, flow: Flow, seconds: float) -> None:
        """A piece that was started took so long."""
        account = self._account(flow)
        account.due += seconds - account.expected
        account.expected = seconds

    def _account(self, flow: Flow) -> _FlowState[W]:
        account = self._accounts.get(flow)
        if account is None:
            if len(self._accounts) >= 2 * REMEMBERED:
                kept = {each: known for each, known in self._accounts.items() if self._matters(known)}
                self._accounts = kept
            account = self._accounts[flow] = _FlowState()
        return account

    def _matters(self, account: _FlowState[W]) -> bool:
        return bool(account.waiting) or account.due > self._now

    def _top(self) -> tuple[float, int, Flow]:
        """The entry that is due first. A piece's time is only known after the flow's next one was queued."""
        while (top := self._first[0])[0] < (due := self._accounts[top[2]].due):
            heapq.heapreplace(self._first, (due, top[1], top[2]))
        return top

    def _enter(self, flow: Flow, account: _FlowState[W]) -> None:
        self._number += 1
        heapq.heappush(self._first, (max(self._now, account.due), self._number, flow))


class Turns:
    """Hands out the time of one event loop.

    While calls arrive, large work gets only its share beside small calls. gRPC hands over one call in each
    pass of the loop, so otherwise a call would wait for one piece of large work for every call before it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._line: TurnQueue[asyncio.Future[None]] = TurnQueue()
        self._clock = clock
        self._used = 0.0  # of this pass
        self._passing = False
        self._arrived = False  # since the last pass
        self._rests_until = 0.0  # until when large work has had its share
        self._held = False

    def arrived(self) -> None:
        """A call has arrived, or a small one continues: there may be more."""
        self._arrived = True

    def hold(self) -> None:
        """Start no large work until `release`."""
        self._held = True

    def release(self) -> None:
        """Let large work go on."""
        self._held = False
        if self._line:
            self._pass_soon()

    async def do(self, flow: Flow, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` when it is this flow's turn: returns or raises what it does."""
        await self._turn(flow)
        begun = self._clock()
        try:
            return work(*args, **kwargs)
        finally:
            self._took(flow, self._clock() - begun)

    async def wait(self, flow: Flow, seconds: float) -> None:
        """Wait until it is this flow's turn, for work that should take so long."""
        await self._turn(flow)
        self._took(flow, seconds)

    async def _turn(self, flow: Flow) -> None:
        if flow.small:
            return
        if self._line.is_next(flow) and self._may_begin():
            self._line.begin(flow)
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.put(flow, turn)
        self._pass_soon()
        await turn

    def _may_begin(self) -> bool:
        """Whether large work may start."""
        if self._held or self._used >= PASS_SECONDS:
            return False
        return not self._arrived or self._clock() >= self._rests_until

    def _took(self, flow: Flow, seconds: float) -> None:
        if flow.small:
            self._arrived = True
            return
        self._line.took(flow, seconds)
        self._used += seconds
        self._rests_until = self._clock() + SMALL_SHARE * seconds
        self._pass_soon()

    def _pass_soon(self) -> None:
        if not self._passing and not self._held:
            self._passing = True
            asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        """The loop has handled what has arrived: one of those who wait gets its turn."""
        self._passing = False
        self._used = 0.0
        may_begin, self._arrived = self._may_begin(), False
        while may_begin and self._line:
            flow, turn = self._line.pop()
            if not turn.done():
                turn.set_result(None)
                break
            self._line.took(flow, 0.0)  # it was cancelled
        if self._line:
            self._pass_soon()
