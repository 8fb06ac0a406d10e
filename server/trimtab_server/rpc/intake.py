"""What clients have sent and the server is not done with: open calls, and the messages that they hold.

gRPC bounds the calls of one connection; here all of them are bounded together, and their bytes. Where there
is no room, whoever holds most makes it: the latest call of the largest caller is ended (longest queue drop),
so that nobody is refused for what others hold.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc.aio

from trimtab.errors import ResourceExhausted
from trimtab_server.rpc.arriving import Arriving
from trimtab_server.rpc.senders import Sender

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
RETRY_SECONDS = 1.0


_current: ContextVar["Call"] = ContextVar("call")


def current() -> "Call":
    """The call that the current task works on."""
    return _current.get()


class Caller:
    """Whoever shares one part of the room: a tenant that has shown who it is, or else a connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: dict[Call, None] = {}  # in the order in which they came
        self.bytes = 0


class Call:
    """One open call, and what it holds."""

    __slots__ = ("_intake", "bytes", "caller", "error", "sender", "task", "understood")

    def __init__(
        self, intake: "Intake", caller: Caller, sender: Sender, task: "asyncio.Task[Any] | None"
    ) -> None:
        self.caller = caller
        self.sender = sender
        self.bytes = 0
        self.understood = False  # a message has come that can be read
        self.error: ResourceExhausted | None = None  # why it was ended
        self.task = task
        self._intake = intake

    async def read(self, context: Context) -> bytes | None:
        """The next message as it came; None where there is none."""
        arriving, peer, size = self._intake.arriving, self.sender.peer, 0
        arriving.began(peer, self)
        try:
            data = await context.read()
            if data is grpc.aio.EOF:
                return None
            size = len(data)
            return bytes(data)
        finally:
            arriving.ended(peer, self, size)

    def hold(self, size: int) -> None:
        """It holds a message of so many bytes; ResourceExhausted where there is no room for that."""
        self._intake.hold(self, size)

    def release(self, size: int) -> None:
        """It holds so many bytes less; nothing, where it was ended."""
        self._intake.count(self, -min(size, self.bytes))

    def end(self, error: ResourceExhausted) -> None:
        """Cancel its task, which answers with the error."""
        if self.error is None:
            self.error = error
            if self.task is not None:
                self.task.cancel()

    def ended(self) -> ResourceExhausted | None:
        """Why its task was cancelled, where that was by `end`; the task goes on then."""
        if self.error is not None and self.task is not None:
            self.task.uncancel()
        return self.error


class Intake:
    """Counts calls and bytes, by caller and altogether."""

    def __init__(self, max_calls: int, max_bytes: int, arriving: Arriving) -> None:
        self.max_calls, self.max_bytes = max_calls, max_bytes
        self.calls = self.bytes = 0
        self.arriving = arriving
        self._callers: dict[str, Caller] = {}
        self._used: set[str] = set()  # connections whose calls have ended since somebody asked

    def used(self) -> set[str]:
        """The connections that had calls since the last time that somebody asked."""
        used, self._used = self._used, set()
        used.update(call.sender.peer for caller in self._callers.values() for call in caller.calls)
        return used

    def open(self, sender: Sender, name: str, task: "asyncio.Task[Any] | None") -> Call:
        """A call on which a task works, of the caller `name`, or of the connection where that is "";
        ResourceExhausted where there is no room."""
        name = name or sender.peer
        caller = self._callers.get(name) or Caller(name)
        if self.calls >= self.max_calls:
            why = f"{self.calls} calls are open, and this server takes {self.max_calls} (limits.max_calls)"
            self._end_one(lambda each: len(each.calls), len(caller.calls) + 1, lambda call: True, why)
        call = Call(self, caller, sender, task)
        caller.calls[call] = None
        self._callers[name] = caller
        self.calls += 1
        _current.set(call)
        return call

    def close(self, call: Call) -> None:
        """The call is over, and holds nothing."""
        caller = call.caller
        if call in caller.calls:
            call.release(call.bytes)
            del caller.calls[call]
            self.calls -= 1
            if not caller.calls:
                del self._callers[caller.name]
            self._used.add(call.sender.peer)

    def hold(self, call: Call, size: int) -> None:
        """The call holds a message of so many bytes; ResourceExhausted where there is no room for it."""
        while self.bytes + size > self.max_bytes:
            why = (
                f"messages of {self.bytes} bytes are being answered, and this server keeps {self.max_bytes} "
                "(limits.max_received_bytes)"
            )
            self._end_one(
                lambda each: each.bytes, call.caller.bytes + size, lambda other: other.bytes > 0, why
            )
        self.count(call, size)

    def count(self, call: Call, size: int) -> None:
        """The call holds so many bytes more, or less."""
        call.bytes += size
        call.caller.bytes += size
        self.bytes += size

    def _end_one(
        self, size: Callable[[Caller], int], own: int, counts: Callable[[Call], bool], why: str
    ) -> None:
        """End the latest call that counts of the largest caller.

        ResourceExhausted where that is no larger than the one who asks for room would be.
        """
        error = ResourceExhausted(f"{why}: send less at once, and try again", RETRY_SECONDS)
        largest = max(self._callers.values(), key=size, default=None)
        if largest is None or size(largest) <= own:
            raise error
        last = next(call for call in reversed(largest.calls) if counts(call))
        last.end(error)
        self.close(last)
