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
from collections.abc import Callable, Coroutine
from typing import Any

from bench.chaos.attacks import EMBED, INFER, message
from bench.chaos.flood_connection import Attack, FloodConnection, connected
from bench.chaos.known import NAME
from trimtab.v1 import encoder_pb2 as pb
from trimtab_server.config import LimitSettings

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
RESCORE = "/trimtab.v1.EncoderService/Rescore"
MIB = 1 << 20
# The largest message that a server takes.
MESSAGE = LimitSettings().max_message_bytes
# SETTINGS_INITIAL_WINDOW_SIZE: nothing may be answered.
CLOSED = b"\x00\x04" + bytes(4)


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

    async def again(one: FloodConnection) -> None:
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
