"""Messages on their way: bounds what has come of them, before they are whole.

gRPC compares a message with `max_receive_message_length` only when all of it is there, however long it says
that it is, and tells nobody how far it has come. The system knows how much each connection has received. So
while messages are read, that is looked at, less what came whole; the connection with most is the first whose
messages are ended.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

from trimtab.errors import ResourceExhausted
from trimtab_server.rpc.sockets import Connections

# Between two looks at the process's memory, which cost microseconds, and at the connections, which cost more.
TICK_SECONDS = 0.02
LOOK_SECONDS = 0.25
# The connections are looked at as soon as the process has grown by this much.
GROWTH_BYTES = 16 << 20
# Beside a message: its frames, records of TLS, headers, and what the client says about the answers it reads.
# More than these take is no harm, since nothing is saved up.
BESIDE_MESSAGE, BESIDE_BYTES = 1024, 256
RETRY_SECONDS = 1.0


class Reader(Protocol):
    """A call that waits for a message."""

    def end(self, error: ResourceExhausted) -> None:
        """Answer it with the error."""


class Arriving:
    """What came over each connection, while messages are read from it, and has not become messages.

    `resident` tells how much memory the process has, `received` what each of some connections has received
    since it began; those that it does not know are left out, and not bounded.
    """

    def __init__(
        self,
        max_bytes: int,
        resident: Callable[[], int] | None = None,
        received: Callable[[Collection[str]], Mapping[str, int]] | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self._resident = resident or _resident
        self._received = received or Connections().received
        self._readers: dict[str, dict[Reader, None]] = {}
        self._any = asyncio.Event()
        self._least = self._resident()
        self._whole: Counter[str] = Counter()
        self._seen: dict[str, int] = {}
        self._on_way: dict[str, int] = {}

    def began(self, peer: str, reader: Reader) -> None:
        """A call of this connection waits for a message."""
        self._readers.setdefault(peer, {})[reader] = None
        self._any.set()

    def ended(self, peer: str, reader: Reader, size: int) -> None:
        """It waits no more: a message of so many bytes has come, or none."""
        readers = self._readers[peer]
        del readers[reader]
        if readers:
            self._whole[peer] += size + size // BESIDE_BYTES + BESIDE_MESSAGE
            return
        del self._readers[peer]
        self._forget(peer)
        if not self._readers:
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
        """See what has come, and end the messages of the connections with most where it is too much."""
        for peer, total in self._received(self._readers).items():
            came = total - self._seen.get(peer, total) - self._whole.pop(peer, 0)
            self._seen[peer] = total
            self._on_way[peer] = max(0, self._on_way.get(peer, 0) + came)
        while (held := sum(self._on_way.values())) > self.max_bytes:
            peer = max(self._on_way, key=self._on_way.__getitem__)
            error = ResourceExhausted(
                f"{held} bytes of messages are on their way, and this server keeps {self.max_bytes} of those "
                "that are not whole (limits.max_received_bytes): send less at once, and try again",
                RETRY_SECONDS,
            )
            for reader in list(self._readers.get(peer, ())):
                reader.end(error)
            self._on_way[peer] = 0

    def _grown(self) -> bool:
        resident = self._resident()
        self._least = min(self._least, resident)
        if resident - self._least < GROWTH_BYTES:
            return False
        self._least = resident
        return True

    def _forget(self, peer: str) -> None:
        self._whole.pop(peer, None)
        self._seen.pop(peer, None)
        self._on_way.pop(peer, None)


def _resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
