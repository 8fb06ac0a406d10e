"""Whose turn it is on the event loop, which all calls share: start-time fair queueing by the time it takes.

Work that may take long is done in pieces, and each piece waits for its caller's turn (Goyal, Vin and Cheng,
1996, as the batcher does for devices). A caller's own pieces go one after the other, however many it has;
whoever has had less than its share goes before those who have had more. So a caller with one small call waits
for the piece that runs, not for what others have queued. Calls with small messages have a larger share than
those with large ones. While nobody has to wait, a turn costs a few comparisons.
"""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
W = TypeVar("W")

# Messages of more bytes are large.
SMALL_BYTES = 16 << 10
# Texts that are queued, or rows that are answered, in one piece: about a millisecond.
PIECE = 64
# A small call's share to a large one's 1.
SMALL_SHARE = 16.0
# In one pass of the loop so much work of large calls is begun, and then whatever has arrived is looked at.
PASS_SECONDS = 0.001
# Callers that are remembered at least; beyond, those who have no more than their share are forgotten.
REMEMBERED = 1024


class Flow(NamedTuple):
    """Calls that share one part of the loop's time: of a caller, small ones apart from large ones."""

    caller: Hashable
    small: bool


class _Account(Generic[W]):
    __slots__ = ("due", "expected", "waiting")

    def __init__(self) -> None:
        self.due = 0.0  # virtual time at which it has had its share
        self.expected = 0.0  # what its next piece takes, by its last one; as a part of its share
        self.waiting: deque[W] = deque()


class Line(Generic[W]):
    """What waits, by flow, the first of each by when the flow has had its share. Sans-IO."""

    def __init__(self) -> None:
        self._now = 0.0  # virtual time: when the last piece that was begun was due
        self._accounts: dict[Flow, _Account[W]] = {}
        self._first: list[
            tuple[float, int, Flow]
        ] = []  # a heap: one entry for each flow that has any waiting
        self._number = 0

    def __len__(self) -> int:
        return len(self._first)

    def is_next(self, flow: Flow) -> bool:
        """Whether a newcomer of this flow would be before all that waits."""
        if not self._first:
            return True
        account = self._accounts.get(flow)
        if account is not None and account.waiting:
            return False
        return max(self._now, account.due if account else 0.0) < self._top()[0]

    def put(self, flow: Flow, what: W) -> None:
        """Something waits, behind all else of its flow."""
        account = self._account(flow)
        account.waiting.append(what)
        if len(account.waiting) == 1:
            self._enter(flow, account)

    def pop(self) -> tuple[Flow, W]:
        """Whose turn it is; it is begun."""
        flow = self._top()[2]
        heapq.heappop(self._first)
        account = self._accounts[flow]
        what = account.waiting.popleft()
        self.begin(flow)
        if account.waiting:
            self._enter(flow, account)
        return flow, what

    def begin(self, flow: Flow) -> None:
        """A piece of this flow is begun, and expected to take as long as its last one."""
        account = self._account(flow)
        self._now = max(self._now, account.due)
        account.due = self._now + account.expected

    def took(self, flow: Flow, seconds: float) -> None:
        """A piece that was begun has taken so long."""
        account = self._account(flow)
        share = seconds / SMALL_SHARE if flow.small else seconds
        account.due += share - account.expected
        account.expected = share

    def _account(self, flow: Flow) -> _Account[W]:
        account = self._accounts.get(flow)
        if account is None:
            if len(self._accounts) >= 2 * REMEMBERED:
                kept = {each: known for each, known in self._accounts.items() if self._matters(known)}
                self._accounts = kept
            account = self._accounts[flow] = _Account()
        return account

    def _matters(self, account: _Account[W]) -> bool:
        return bool(account.waiting) or account.due > self._now

    def _top(self) -> tuple[float, int, Flow]:
        """The entry that is due first. What a piece takes is known after the flow's next one has entered."""
        while (top := self._first[0])[0] < (due := self._accounts[top[2]].due):
            heapq.heapreplace(self._first, (due, top[1], top[2]))
        return top

    def _enter(self, flow: Flow, account: _Account[W]) -> None:
        self._number += 1
        heapq.heappush(self._first, (max(self._now, account.due), self._number, flow))


class Turns:
    """Hands out the time of one event loop."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._line: Line[asyncio.Future[None]] = Line()
        self._clock = clock
        self._used = 0.0  # of this pass
        self._passing = False

    async def do(self, flow: Flow, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises, when it is this flow's turn."""
        line = self._line
        if line.is_next(flow) and (flow.small or self._used < PASS_SECONDS):
            line.begin(flow)
        else:
            turn = asyncio.get_running_loop().create_future()
            line.put(flow, turn)
            self._pass_soon()
            await turn
        begun = self._clock()
        try:
            return work(*args, **kwargs)
        finally:
            seconds = self._clock() - begun
            line.took(flow, seconds)
            if not flow.small:
                self._used += seconds
                self._pass_soon()

    def _pass_soon(self) -> None:
        if not self._passing:
            self._passing = True
            asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        """The loop has looked at what has arrived: one of those who wait gets its turn."""
        self._passing = False
        self._used = 0.0
        while self._line:
            flow, turn = self._line.pop()
            if not turn.done():
                turn.set_result(None)
                break
            self._line.took(flow, 0.0)  # it was cancelled
        if self._line:
            self._pass_soon()
