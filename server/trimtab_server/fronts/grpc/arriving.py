"""Messages on their way: bounds what has come of them, before they are whole.

gRPC compares a message with `max_receive_message_length` only when all of it is there, however long it says
that it is, and tells nobody how far it has come. The system knows how much each connection has received. So
while messages are read, that is looked at, less what came whole; the connection with most is the first whose
messages are ended. So is a message of which more has come than its call takes.
"""

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trimtab.errors import ResourceExhausted
from trimtab_server.fronts.grpc.sockets import Connections

# Between two looks at the process's memory, which cost microseconds, and at the connections, which cost more.
TICK_SECONDS = 0.02
LOOK_SECONDS = 0.25
# The connections are looked at as soon as the process has grown by this much.
GROWTH_BYTES = 16 << 20
# Beside a message: its frames, records of TLS, headers, and what the client says about the answers it reads.
# More than these take is no harm, since nothing is saved up.
BESIDE_MESSAGE, BESIDE_BYTES = 1024, 256
# What all calls of a connection may send before anybody waits for their messages: of so many by default, what
# HTTP/2 lets each.
IN_ADVANCE_BYTES = 16 << 20
# Who is cut off because all together send too much may mean well: that counts as one refused message of so
# many bytes, and not as all that had come.
MESSAGE_BYTES = 4 << 20
RETRY_SECONDS = 1.0


class Reader(Protocol):
    """A call that waits for a message."""

    most: int  # bytes that its only message may have; 0: it reads one after the other

    def end(self, error: ResourceExhausted) -> None:
        """Answer it with the error."""


@dataclass(slots=True)
class _Incoming:
    """What has come over one connection since calls wait for messages from it."""

    readers: dict[Reader, None] = field(default_factory=dict)
    whole: int = 0  # bytes, of messages that are whole since the last look
    seen: int | None = None  # received at the last look, since the connection began
    on_way: int = 0
    # The same since the last look at which no call waited for its only message that had waited before: what
    # comes beside messages does not add up there.
    lately: int = 0
    waited: frozenset[Reader] = frozenset()  # for their only message, at the last look

    def look(self, total: int) -> None:
        """So many bytes have been received by now."""
        came = total - (total if self.seen is None else self.seen) - self.whole
        self.seen, self.whole = total, 0
        self.on_way = max(0, self.on_way + came)
        waiting = frozenset(reader for reader in self.readers if reader.most)
        self.lately = max(0, self.lately + came) if waiting & self.waited else 0
        self.waited = waiting

    def too_long(self, in_advance: int) -> bool:
        """Whether more has come than the calls that wait may send, and all others in advance."""
        most = sum(reader.most for reader in self.readers)
        return self.lately > most + in_advance and all(reader.most for reader in self.readers)

    def end(self, error: ResourceExhausted) -> int:
        """End the calls that wait; how many bytes have come for nothing."""
        for reader in list(self.readers):
            reader.end(error)
        wasted, self.on_way, self.lately = self.on_way, 0, 0
        return wasted


class Arriving:
    """What came over each connection, while messages are read from it, and has not become messages.

    `refused` is told of connections whose messages were ended, and of how many bytes. `resident` tells how
    much memory the process has, `received` what each of some connections has received since it began; those
    that it does not know are left out, and not bounded. `in_advance`: what all calls of a connection may
    send before anybody waits for their messages.
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

    def began(self, peer: str, reader: Reader) -> None:
        """A call of this connection waits for a message."""
        connection = self._connections.get(peer)
        if connection is None:
            connection = self._connections[peer] = _Incoming()
            self._any.set()
        connection.readers[reader] = None

    def ended(self, peer: str, reader: Reader, size: int) -> None:
        """It waits no more: a message of so many bytes has come, or none."""
        connection = self._connections[peer]
        del connection.readers[reader]
        if connection.readers:
            connection.whole += size + size // BESIDE_BYTES + BESIDE_MESSAGE
            return
        del self._connections[peer]
        if not self._connections:
            self._any.clear()

    async def watch(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await self._any.wait()
            await asyncio.sleep(TICK_SECONDS)
            if self._grown() or loop.time() - looked >= LOOK_SECONDS:
                self.look()
                looked = loop.time()

    def look(self) -> None:
        """See what has come. Messages that are longer than their calls take are ended; where all together are
        too much, those of the connections with most."""
        for peer, total in self._received(self._connections).items():
            connection = self._connections[peer]
            connection.look(total)
            if connection.too_long(self._in_advance):
                most = max(reader.most for reader in connection.readers)
                error = ResourceExhausted(  # in gRPC's words, by which clients know it
                    f"received message larger than max: {connection.lately} bytes have come, and this call "
                    f"takes {most} (limits.max_message_bytes): send less"
                )
                self._refused(peer, connection.end(error))
        while (held := sum(each.on_way for each in self._connections.values())) > self.max_bytes:
            peer = max(self._connections, key=lambda peer: self._connections[peer].on_way)
            error = ResourceExhausted(
                f"{held} bytes of messages are on their way, and this server keeps {self.max_bytes} of those "
                "that are not whole (limits.max_received_bytes): send less at once, and try again",
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
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
