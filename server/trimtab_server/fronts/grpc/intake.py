"""Bounds the open calls of all connections together, and the bytes of their messages.

gRPC itself bounds only the calls of each connection. If there is no room, the latest call of the largest
holder is ended (longest queue drop), so that nobody is refused for what others hold.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc.aio

from trimtab.errors import ResourceExhausted
from trimtab_server.callers.access import Caller
from trimtab_server.callers.call import Call
from trimtab_server.fronts.grpc.arriving import Arriving
from trimtab_server.fronts.grpc.senders import Sender
from trimtab_server.fronts.grpc.statuses import Context

RETRY_SECONDS = 1.0


class Holder:
    """Who holds room: an authenticated caller, or else a connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: dict[OpenCall, None] = {}  # in the order in which they came
        self.bytes = 0


class OpenCall:
    """An open gRPC call: who makes it, and what it holds. Servicers get it in place of gRPC's context."""

    __slots__ = (
        "_context", "_intake", "bytes", "caller", "deadline", "error", "holder", "most", "request_id",
        "sender", "task", "understood",
    )  # fmt: skip

    def __init__(
        self,
        intake: "Intake",
        holder: Holder,
        caller: Caller,
        sender: Sender,
        context: Context,
        task: "asyncio.Task[Any] | None",
        request_id: str,
    ) -> None:
        self.caller = caller
        self.holder = holder
        self.sender = sender
        # Asked for when the call begins: gRPC keeps it in wall-clock time, which may jump during a stream.
        remaining = context.time_remaining()
        self.deadline = None if remaining is None else time.monotonic() + remaining
        self.request_id = request_id
        self.bytes = 0
        self.most = 0  # the most bytes of its only message; 0: it streams messages
        self.understood = False  # one of its messages has been parsed
        self.error: ResourceExhausted | None = None  # why it was ended
        self.task = task
        self._context = context
        self._intake = intake

    def request(self, protocol: str) -> Call:
        """A request in this protocol, which arrives now with a message of the call."""
        tenant, peer = self.sender
        return Call(
            self.caller, tenant, tenant or peer, protocol, time.monotonic(), self.deadline, "interactive",
            self.request_id,
        )  # fmt: skip

    async def write(self, answer: Any) -> None:
        """Write one of the call's answers."""
        await self._context.write(answer)

    async def read(self) -> bytes | None:
        """The next message, unparsed; None if there are no more."""
        arriving, peer, size = self._intake.arriving, self.sender.peer, 0
        arriving.began(peer, self)
        try:
            data = await self._context.read()
            if data is grpc.aio.EOF:
                return None
            size = len(data)
            return bytes(data)
        finally:
            arriving.ended(peer, self, size)

    def hold(self, size: int) -> None:
        """Hold a message of this size; ResourceExhausted if there is no room for it."""
        intake, holder = self._intake, self.holder
        if intake.bytes + size > intake.max_bytes:
            intake.make_room(self, size)
        self.bytes += size
        holder.bytes += size
        intake.bytes += size

    def release(self, size: int) -> None:
        """Hold so many bytes less, or none if the call was ended."""
        size = min(size, self.bytes)
        self.bytes -= size
        self.holder.bytes -= size
        self._intake.bytes -= size

    def end(self, error: ResourceExhausted) -> None:
        """Cancel its task, which answers with the error."""
        if self.error is None:
            self.error = error
            if self.task is not None:
                self.task.cancel()

    def ended(self) -> ResourceExhausted | None:
        """The error that `end` cancelled its task with, if it did; the task is uncancelled, and can answer
        with it."""
        if self.error is not None and self.task is not None:
            self.task.uncancel()
        return self.error


class Intake:
    """Counts open calls and their bytes, by holder and in total."""

    def __init__(self, max_calls: int, max_bytes: int, arriving: Arriving) -> None:
        self.max_calls, self.max_bytes = max_calls, max_bytes
        self.calls = self.bytes = 0
        self.arriving = arriving
        self._holders: dict[str, Holder] = {}
        self._used: set[str] = set()  # connections whose calls ended since `used` was last called

    def used(self) -> set[str]:
        """The connections that had calls since this was last called."""
        used, self._used = self._used, set()
        used.update(call.sender.peer for holder in self._holders.values() for call in holder.calls)
        return used

    def open(
        self,
        caller: Caller,
        sender: Sender,
        context: Context,
        task: "asyncio.Task[Any] | None" = None,
        request_id: str = "",
    ) -> OpenCall:
        """Open a call, which `task` handles; ResourceExhausted if there is no room."""
        name = caller.name or sender.peer
        holder = self._holders.get(name) or Holder(name)
        if self.calls >= self.max_calls:
            why = f"{self.calls} calls are open, and this server takes {self.max_calls} (limits.max_calls)"
            self._end_one(lambda each: len(each.calls), len(holder.calls) + 1, lambda call: True, why)
        call = OpenCall(self, holder, caller, sender, context, task, request_id)
        holder.calls[call] = None
        self._holders[name] = holder
        self.calls += 1
        return call

    def close(self, call: OpenCall) -> None:
        """The call is over, and holds nothing."""
        holder = call.holder
        if call in holder.calls:
            call.release(call.bytes)
            del holder.calls[call]
            self.calls -= 1
            if not holder.calls:
                del self._holders[holder.name]
            self._used.add(call.sender.peer)

    def make_room(self, call: OpenCall, size: int) -> None:
        """Make room for a message of the call; ResourceExhausted if there is none."""
        while self.bytes + size > self.max_bytes:
            why = (
                f"messages of {self.bytes} bytes are being answered, and this server keeps {self.max_bytes} "
                "(limits.max_received_bytes)"
            )
            self._end_one(
                lambda each: each.bytes, call.holder.bytes + size, lambda other: other.bytes > 0, why
            )

    def _end_one(
        self, size: Callable[[Holder], int], own: int, counts: Callable[[OpenCall], bool], why: str
    ) -> None:
        """End the latest of the largest holder's calls for which `counts` is true.

        ResourceExhausted if that holder is no larger than the one who asks for room would be.
        """
        error = ResourceExhausted(f"{why}: send less at once, and try again", RETRY_SECONDS)
        largest = max(self._holders.values(), key=size, default=None)
        if largest is None or size(largest) <= own:
            raise error
        last = next(call for call in reversed(largest.calls) if counts(call))
        last.end(error)
        self.close(last)
