"""A connection that floods a server, with hand-made HTTP/2 frames."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from bench.chaos.attacks import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST,
    SETTINGS,
    WINDOW,
    frame,
    headers,
)

# Calls written in one go: one at a time, this program would be slower than the server.
TOGETHER = 64
ACKNOWLEDGED = 1
CANCEL = (8).to_bytes(4, "big")
WIDE = (1 << 30).to_bytes(4, "big")


@dataclass
class Attack:
    """The target, the end time, the token, and what was sent."""

    port: int
    metrics_port: int
    until: float
    token: str
    sent: dict[str, int] = field(default_factory=lambda: {"connections": 0, "calls": 0, "bytes": 0})

    def over(self) -> bool:
        return time.monotonic() >= self.until

    def headers(self, path: str, **more: str) -> bytes:
        """A call's headers, with the token if there is one."""
        return headers(path, **({"authorization": f"Bearer {self.token}"} if self.token else {}), **more)


class FloodConnection:
    """A client that sends as much as flow control allows, and reads everything except answers."""

    def __init__(self, attack: Attack, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.attack = attack
        self._reader, self._writer = reader, writer
        self._next = 1
        self._initial = 65_535
        self._windows = {0: 65_535}
        self._wider = asyncio.Event()
        self.most_calls = 100  # as the server's settings say
        self.open: set[int] = set()

    async def call(self, head: bytes) -> int:
        """Start a call; returns its stream number."""
        number, self._next = self._next, self._next + 2
        self._windows[number] = self._initial
        self.open.add(number)
        await self._write(frame(HEADERS, END_HEADERS, number, head))
        self.attack.sent["calls"] += 1
        return number

    async def calls(self, head: bytes, *, reset: bool) -> None:
        """Start many calls without a message, or reset at once; nobody waits for them."""
        first, self._next = self._next, self._next + 2 * TOGETHER
        flags = END_HEADERS if reset else END_HEADERS | END_STREAM
        numbers = range(first, self._next, 2)
        parts = (
            frame(HEADERS, flags, number, head) + (frame(RST, 0, number, CANCEL) if reset else b"")
            for number in numbers
        )
        await self._write(b"".join(parts))
        self.attack.sent["calls"] += TOGETHER

    async def send(self, number: int, content: bytes, *, end: bool = True) -> None:
        """Send a part of a message as the windows allow; returns early if the call or the time is over."""
        view = memoryview(content)
        while view and number in self.open and not self.attack.over():
            room = min(self._windows[0], self._windows.get(number, 0), 16_384, len(view))
            if room <= 0:
                self._wider.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await self._wider.wait()
                continue
            part, view = view[:room], view[room:]
            self._windows[0] -= room
            self._windows[number] -= room
            await self._write(frame(DATA, END_STREAM if end and not view else 0, number, bytes(part)))

    def forget(self, number: int) -> None:
        """Forget a call."""
        self.open.discard(number)
        self._windows.pop(number, None)

    async def _write(self, content: bytes) -> None:
        self._writer.write(content)
        self.attack.sent["bytes"] += len(content)
        await self._writer.drain()

    async def listen(self) -> None:
        """Read frames until no more arrive."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self._reader.readexactly(9)
                content = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self._heard(head[3], head[4], int.from_bytes(head[5:], "big"), content)
        self.open.clear()
        self.attack.sent["closed"] = self.attack.sent.get("closed", 0) + 1

    def _heard(self, kind: int, flags: int, number: int, content: bytes) -> None:
        if kind == WINDOW:
            self._windows[number] = self._windows.get(number, 0) + int.from_bytes(content, "big")
            self._wider.set()
        elif kind == SETTINGS and not flags & ACKNOWLEDGED:
            for place in range(0, len(content), 6):
                key = int.from_bytes(content[place : place + 2], "big")
                value = int.from_bytes(content[place + 2 : place + 6], "big")
                if key == 4:
                    for open_call in self.open:
                        self._windows[open_call] += value - self._initial
                    self._initial = value
                elif key == 3:
                    self.most_calls = value
            self._writer.write(frame(SETTINGS, ACKNOWLEDGED, 0))
        elif kind == RST or (kind in (HEADERS, DATA) and flags & END_STREAM):
            self.forget(number)
            self._wider.set()


@contextlib.asynccontextmanager
async def connected(attack: Attack, settings: bytes = b"") -> AsyncIterator[FloodConnection]:
    """An HTTP/2 client with a wide connection window."""
    reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
    attack.sent["connections"] += 1
    writer.write(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW, 0, 0, WIDE))
    connection = FloodConnection(attack, reader, writer)
    listening = asyncio.create_task(connection.listen())
    try:
        yield connection
    finally:
        listening.cancel()
        writer.transport.abort()
