"""A caller who floods a server, in its own process, with hand-made HTTP/2 frames.

    python -m bench.chaos.flooding FLOOD PORT METRICS_PORT SECONDS CONNECTIONS [TOKEN]

It floods for SECONDS, over CONNECTIONS at once, and prints what it sent as JSON.
"""

import asyncio
import contextlib
import functools
import gzip
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from bench.chaos.attacks import (
    DATA,
    EMBED,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INFER,
    PREFACE,
    RST,
    SETTINGS,
    WINDOW,
    frame,
    headers,
    message,
)
from bench.chaos.known import NAME
from trimtab.v1 import encoder_pb2 as pb
from trimtab_server.config import LimitSettings

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
RESCORE = "/trimtab.v1.EncoderService/Rescore"
MIB = 1 << 20
# The largest message that a server takes.
MESSAGE = LimitSettings().max_message_bytes
# Calls written in one go: one at a time, this program would be slower than the server.
TOGETHER = 64
ACKNOWLEDGED = 1
CANCEL = (8).to_bytes(4, "big")
WIDE = (1 << 30).to_bytes(4, "big")
# SETTINGS_INITIAL_WINDOW_SIZE: nothing may be answered.
CLOSED = b"\x00\x04" + bytes(4)


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


class Connection:
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
async def connected(attack: Attack, settings: bytes = b"") -> AsyncIterator[Connection]:
    """An HTTP/2 client with a wide connection window."""
    reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
    attack.sent["connections"] += 1
    writer.write(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW, 0, 0, WIDE))
    connection = Connection(attack, reader, writer)
    listening = asyncio.create_task(connection.listen())
    try:
        yield connection
    finally:
        listening.cancel()
        writer.transport.abort()


def varint(number: int) -> bytes:
    """A number as a protobuf varint."""
    parts = bytearray()
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes((*parts, number))


def field_of(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


async def _calls(attack: Attack, path: str, *, reset: bool) -> None:
    """HEADERS after HEADERS, as fast as the connection takes them, ignoring the server's settings."""
    head = attack.headers(path)
    while not attack.over():
        async with connected(attack) as one:
            with contextlib.suppress(ConnectionError):
                while not attack.over():
                    await one.calls(head, reset=reset)
                    await asyncio.sleep(0)


async def unknown(attack: Attack) -> None:
    """Calls of an unknown path."""
    await _calls(attack, "/no/such", reset=False)


async def resets(attack: Attack) -> None:
    """Calls that are reset at once."""
    await _calls(attack, EMBED, reset=True)


async def _messages(attack: Attack, head: bytes, content: bytes, calls: int) -> None:
    """The same message in call after call, this many at a time."""

    async def again(one: Connection) -> None:
        with contextlib.suppress(ConnectionError):
            while not attack.over():
                await one.send(await one.call(head), content)
                await asyncio.sleep(0)

    async with connected(attack) as one:
        await asyncio.gather(*(again(one) for _ in range(calls)))


@functools.cache
def _bomb() -> bytes:
    return message(gzip.compress(bytes(64 * MIB), 9) * 16, compressed=1)


async def compressed(attack: Attack) -> None:
    """Messages of a megabyte that inflate to a gigabyte."""
    head = attack.headers(EMBED if attack.token else CHECK, **{"grpc-encoding": "gzip"})
    await _messages(attack, head, _bomb(), calls=8)


@functools.cache
def _name() -> bytes:
    return message(field_of(1, b"a" * (MESSAGE - 16)))


async def names(attack: Attack) -> None:
    """Health watches of services whose names are as long as a message may be: at ten times, 3 GB at once."""
    await _messages(attack, attack.headers(WATCH), _name(), calls=75)


async def whole(attack: Attack) -> None:
    """Messages that declare, and have, 4 GiB."""
    head, part = attack.headers(EMBED if attack.token else CHECK), bytes(MIB)
    async with connected(attack) as one:
        with contextlib.suppress(ConnectionError):
            while not attack.over():
                number = await one.call(head)
                await one.send(number, message(b"", length=(1 << 32) - 1), end=False)
                while number in one.open and not attack.over():
                    await one.send(number, part, end=False)
                await asyncio.sleep(0)


@functools.cache
def _half() -> bytes:
    return message(bytes(MESSAGE - 1), length=MESSAGE)


async def halves(attack: Attack) -> None:
    """Messages whose last byte never comes, in as many calls as the server accepts."""
    content = _half()
    head = attack.headers(EMBED if attack.token else CHECK)
    async with connected(attack) as one:
        with contextlib.suppress(ConnectionError):
            while not attack.over():
                if len(one.open) >= one.most_calls:
                    await asyncio.sleep(0.01)
                    continue
                await one.send(await one.call(head), content, end=False)


@functools.cache
def _empties(number: int) -> bytes:
    return message(field_of(number, b"") * (MESSAGE // 2))


async def empty(attack: Attack) -> None:
    """As many empty candidates, spaces, inputs or parameters as fit into a message, at two bytes each."""
    kinds = [
        (RESCORE, pb.RescoreRequest.CANDIDATES_FIELD_NUMBER),
        (EMBED, pb.EmbedRequest.TEXTS_FIELD_NUMBER),
        (EMBED, pb.EmbedRequest.SPACES_FIELD_NUMBER),
        *((INFER, number) for number in (4, 5, 6, 7)),  # parameters, inputs, outputs, raw elements
    ]
    floods = (_messages(attack, attack.headers(path), _empties(number), calls=1) for path, number in kinds)
    await asyncio.gather(*floods)


async def unread(attack: Attack) -> None:
    """Large requests whose answers are never let through."""
    content = message(pb.EmbedRequest(texts=["w1"] * 1000, encoder=NAME).SerializeToString())
    head = attack.headers(EMBED)
    async with connected(attack, CLOSED) as one:
        with contextlib.suppress(ConnectionError):
            while not attack.over():
                if len(one.open) >= one.most_calls:
                    await asyncio.sleep(0.01)
                    continue
                await one.send(await one.call(head), content)


async def idle(attack: Attack) -> None:
    """A silent connection."""
    with contextlib.suppress(ConnectionError):
        async with connected(attack):
            await asyncio.sleep(max(0, attack.until - time.monotonic()))


async def scrapes(attack: Attack) -> None:
    """Connections to the metrics port; half of them scrape."""
    asks = 0
    while not attack.over():
        with contextlib.suppress(ConnectionError):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(40):
                    _, writer = await asyncio.open_connection("127.0.0.1", attack.metrics_port)
                    stack.callback(writer.transport.abort)
                    attack.sent["connections"] += 1
                    asks += 1
                    if asks % 2:
                        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
                await asyncio.sleep(0.1)


FLOODS: dict[str, Callable[[Attack], Coroutine[Any, Any, None]]] = {
    each.__name__: each
    for each in (
        unknown, resets, compressed, names, whole, halves, empty, unread, idle, scrapes
    )
}  # fmt: skip


async def _run(name: str, attack: Attack, connections: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(FLOODS[name](attack))


def main() -> None:
    """Flood."""
    name, port, metrics_port, seconds, connections, *token = sys.argv[1:]
    attack = Attack(int(port), int(metrics_port), time.monotonic() + float(seconds), "".join(token))
    asyncio.run(_run(name, attack, int(connections)))
    sys.stdout.write(json.dumps(attack.sent))


if __name__ == "__main__":
    main()
