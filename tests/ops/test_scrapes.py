"""The port for metrics: whoever scrapes is answered, however many connections say nothing."""

import asyncio
import gzip
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter

from trimtab_server.observing import scrapes
from trimtab_server.observing.scrapes import Scrapes


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    port = Scrapes(registry)
    try:
        yield await port.start("127.0.0.1:0")
    finally:
        port.stop()


async def ask(port: int, said: bytes) -> tuple[bytes, bytes]:
    """What is answered: head and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


async def test_formats() -> None:
    async with listening() as port:
        head, body = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"text/plain" in head
        assert f"Content-Length: {len(body)}".encode() in head
        assert b"things_total 3.0" in body
        accepted = b"Accept: application/openmetrics-text\r\nAccept-Encoding: gzip\r\n"
        head, body = await ask(port, b"GET /metrics HTTP/1.1\r\n" + accepted + b"\r\n")
        assert b"openmetrics" in head and b"Content-Encoding: gzip" in head
        assert b"# EOF" in gzip.decompress(body)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"POST / HTTP/1.1\r\n\r\n", b"405"),
        (b"noise\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"400"),
        (b"\xff \xfe \xfd\r\n\r\n", b"405"),
        (b"a" * 100_000, b""),
        (b"GET / HTTP/1.1\r\nAccept: application/openmetrics-text; version=noise\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_scrape(said: bytes, status: bytes) -> None:
    async with listening() as port:
        try:
            head, _ = await ask(port, said)
        except ConnectionResetError:
            head = b""
        assert head[9:12] == status
        assert b"things_total" in (await ask(port, b"GET / HTTP/1.1\r\n\r\n"))[1]


async def test_connections_that_say_nothing_are_bounded_and_keep_nobody_out() -> None:
    threads = threading.active_count()
    async with listening() as port:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(400)]
        async with asyncio.timeout(60):
            for reader, _ in connections[: -scrapes.MOST]:
                assert await reader.read() == b""  # closed
        assert b"things_total" in (await ask(port, b"GET / HTTP/1.1\r\n\r\n"))[1]
        assert not connections[-1][0].at_eof()
        assert threading.active_count() == threads
        for _, writer in connections:
            writer.close()


async def test_who_says_nothing_or_does_not_read_is_given_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrapes, "SECONDS", 0.1)
    async with listening() as port:
        for said in (b"", b"GET / HT"):
            assert await ask(port, said) == (b"", b"")


async def test_few_connections_are_accepted_at_a_time_and_all_of_them_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pass of the event loop that accepts a hundred stops every call for tens of milliseconds."""
    accepted: list[object] = []
    connected = Scrapes._connected

    async def noticed(self: Scrapes, *streams: object) -> None:
        accepted.append(streams)
        await connected(self, *streams)  # type: ignore[arg-type]

    monkeypatch.setattr(Scrapes, "_connected", noticed)
    many = 10 * scrapes.ACCEPTED
    async with listening() as port:
        with ExitStack() as clients:
            for _ in range(many):  # the system accepts them while the loop stands still
                clients.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            before = 0
            async with asyncio.timeout(60):
                while len(accepted) < many:
                    await asyncio.sleep(0)
                    assert len(accepted) - before <= 2 * scrapes.ACCEPTED
                    before = len(accepted)
