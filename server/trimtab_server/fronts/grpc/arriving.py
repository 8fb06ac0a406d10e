"""Bounds the bytes of messages that have not arrived completely.

gRPC checks a message against `max_receive_message_length` only when all of it has arrived, and does not tell
how much has. The operating system knows how much each connection has received. So while messages are read,
that number is watched, less the complete messages. If all together are too much, the connection with the most
bytes loses its calls first. A message that grows larger than its call allows is ended, too.
"""

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

from trimtab.errors import ResourceExhausted
from trimtab_server.fronts.grpc.sockets import Connections

# Between two checks of the process's memory, which cost microseconds, and of the connections, which cost
# more.
TICK_SECONDS = 0.02
LOOK_SECONDS = 0.25
# The connections are checked as soon as the process has grown by this much.
GROWTH_BYTES = 16 << 20
# Allowed beside each message: frames, TLS records, headers, window updates for answers. Allowing too much
# does no harm, since unused allowance does not add up.
BESIDE_MESSAGE, BESIDE_BYTES = 1024, 256
# What all calls of a connection may send before the server reads their messages: HTTP/2's window for each,
# with the default number of calls.
IN_ADVANCE_BYTES = 16 << 20
# A client that is cut off because all together send too much may be well-behaved: that counts as one refused
# message of this size, not as everything that had arrived.
MESSAGE_BYTES = 4 << 20
RETRY_SECONDS = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class WaitingCall(Protocol):
    """A call that waits for a message."""

    most: int  # the most bytes of its only message; 0: it reads a stream

    def end(self, error: ResourceExhausted) -> None:
        """Answer it with the error."""


@dataclass(slots=True)
class _Incoming:
    """What one connection has received since calls began to wait for its messages."""

    calls: dict[WaitingCall, None] = field(default_factory=dict)
    whole: int = 0  # bytes of messages completed since the last check
    seen: int | None = None  # received up to the last check, since the connection was opened
    on_way: int = 0
    # The same, but reset at each check at which no call has kept waiting for its only message: so other
    # traffic does not add up.
    lately: int = 0
    waited: frozenset[WaitingCall] = frozenset()  # for their only message, at the last check

    def look(self, total: int) -> None:
        """The connection has received `total` bytes since it was opened."""
        came = total - (total if self.seen is None else self.seen) - self.whole
        self.seen, self.whole = total, 0
        self.on_way = max(0, self.on_way + came)
        waiting = frozenset(call for call in self.calls if call.most)
        self.lately = max(0, self.lately + came) if waiting & self.waited else 0
        self.waited = waiting

    def too_long(self, in_advance: int) -> bool:
        """Whether more has arrived than the waiting calls may send, plus what others may send in advance."""
        most = sum(call.most for call in self.calls)
        return self.lately > most + in_advance and all(call.most for call in self.calls)

    def end(self, error: ResourceExhausted) -> int:
        """End the waiting calls, and return how many bytes arrived in vain."""
        for call in list(self.calls):
            call.end(error)
        wasted, self.on_way, self.lately = self.on_way, 0, 0
        return wasted


class Arriving:
    """Counts the bytes of incomplete messages, by connection.

    `refused` is called with each connection whose calls were ended, and the number of bytes that arrived in
    vain. `resident` gives the process's memory, `received` what each connection has received since it was
    opened; connections that it leaves out are not bounded. `in_advance`: what all calls of a connection may
    send before the server reads their messages.
    """

    def __init__(
        self,
        max_bytes: int,
        resident: Callable[[], int] | None = None,
        received: Callable[[Collection[str]], Mapping[str, int]] | None = None,
        refused: Callable[[str, int], object] = lambda peer, size: None,
        in_advance: int = IN_ADVANCE_BYTES,
    ) -> None:
        self.max_bytes = max_bytes
        self._resident = resident or _resident
        self._received = received or Connections().received
        self._refused = refused
        self._in_advance = in_advance
        self._connections: dict[str, _Incoming] = {}
        self._any = asyncio.Event()
        self._least = self._resident()

    def began(self, peer: str, call: WaitingCall) -> None:
        """A call of this connection waits for a message."""
        connection = self._connections.get(peer)
        if connection is None:
            connection = self._connections[peer] = _Incoming()
            self._any.set()
        connection.calls[call] = None

    def ended(self, peer: str, call: WaitingCall, size: int) -> None:
        """The call no longer waits: a message of this size has arrived, or none."""
        connection = self._connections[peer]
        del connection.calls[call]
        if connection.calls:
            connection.whole += size + size // BESIDE_BYTES + BESIDE_MESSAGE
            return
        del self._connections[peer]
        if not self._connections:
            self._any.clear()

    async def watch(self) -> None:
        """Check until cancelled."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await self._any.wait()
            await asyncio.sleep(TICK_SECONDS)
            if self._grown() or loop.time() - looked >= LOOK_SECONDS:
                self.look()
                looked = loop.time()

    def look(self) -> None:
        """Check what has arrived. End messages that are larger than their calls allow and, if all together
        are too much, those of the connections with the most."""
        for peer, total in self._received(self._connections).items():
            connection = self._connections[peer]
            connection.look(total)
            if connection.too_long(self._in_advance):
                most = max(call.most for call in connection.calls)
                error = ResourceExhausted(  # in gRPC's words, by which clients know it
                    f"received message larger than max: {connection.lately} bytes have arrived, and this "
                    f"call takes {most} (limits.max_message_bytes): send less"
                )
                self._refused(peer, connection.end(error))
        while (held := sum(each.on_way for each in self._connections.values())) > self.max_bytes:
            peer = max(self._connections, key=lambda peer: self._connections[peer].on_way)
            error = ResourceExhausted(
                f"{held} bytes of incomplete messages have arrived, and this server keeps {self.max_bytes} "
                "of those (limits.max_received_bytes): send less at once, and try again",
                RETRY_SECONDS,
            )
            self._refused(peer, min(self._connections[peer].end(error), MESSAGE_BYTES))

    def _grown(self) -> bool:
        resident = self._resident()
        self._least = min(self._least, resident)
        if resident - self._least < GROWTH_BYTES:
            return False
        self._least = resident
        return True


def _resident() -> int:
    """This process's resident memory, in bytes."""
    return int(os.pread(_memory(), 128, 0).split()[1]) * _PAGE_BYTES


@cache
def _memory() -> int:
    """The file that tells how much memory this process has; it stays open, since it is read all the time."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
