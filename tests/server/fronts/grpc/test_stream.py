"""Streams of requests: in which order they are answered, how they drain, and what ends them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import trimtab
from trimtab_server.fronts.grpc.senders import Sender
from trimtab_server.fronts.grpc.stream import Streams
from trimtab_server.fronts.grpc.unread import Unread

WINDOW = 4


class Message:
    """A request of one text."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ByteSize(self) -> int:
        return len(self.name)


class Stream:
    """A client's end, and answers that are ready when a test says so."""

    def __init__(self, streams: Streams, *, in_order: bool) -> None:
        self.sender = Sender("tenant", "peer")
        self.held = 0
        self.written: list[str] = []
        self.messages: asyncio.Queue[str | None] = asyncio.Queue()
        self.ready: dict[str, asyncio.Future[None]] = {}
        self.serving = asyncio.ensure_future(
            streams.serve(self._messages(), self, lambda message: 1, self._answer, in_order=in_order)  # type: ignore[arg-type]
        )

    def hold(self, size: int) -> None:
        self.held += size

    def release(self, size: int) -> None:
        self.held -= size

    async def write(self, outcome: bytes) -> None:
        self.written.append(outcome.decode())

    async def asked(self, names: str) -> None:
        """Send these, and wait until work on each has begun."""
        for name in names:
            self.messages.put_nowait(name)
        await self.until(lambda: set(names) <= set(self.ready))

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0)

    async def _messages(self) -> AsyncIterator[Message]:
        while (name := await self.messages.get()) is not None:
            yield Message(name)

    async def _answer(self, message: Message) -> bytes:
        self.ready[message.name] = asyncio.get_running_loop().create_future()
        await self.ready[message.name]
        return message.name.encode()


@pytest.fixture
def streams() -> Streams:
    return Streams(WINDOW, Unread(1000, 60.0, lambda peers: peers))


@pytest.mark.parametrize(("in_order", "expected"), [(False, "cab"), (True, "abc")])
async def test_answers_come_when_they_are_ready_or_in_order(
    streams: Streams, in_order: bool, expected: str
) -> None:
    stream = Stream(streams, in_order=in_order)
    await stream.asked("abc")
    for name in "cab":
        stream.ready[name].set_result(None)
        await stream.until(lambda name=name: name in stream.written or in_order)
    stream.messages.put_nowait(None)
    await stream.serving
    assert "".join(stream.written) == expected
    assert stream.held == 0


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_window_opens_when_an_answer_is_written(streams: Streams, in_order: bool) -> None:
    stream = Stream(streams, in_order=in_order)
    await stream.asked("abcd")
    stream.messages.put_nowait("e")
    await stream.until(stream.messages.empty)
    assert "e" not in stream.ready
    stream.ready["a"].set_result(None)
    await stream.until(lambda: "e" in stream.ready)
    stream.messages.put_nowait(None)
    for name in "bcde":
        stream.ready[name].set_result(None)
    await stream.serving
    assert stream.held == 0


@pytest.mark.parametrize("in_order", [False, True])
async def test_what_was_read_before_a_drain_is_answered(streams: Streams, in_order: bool) -> None:
    stream, idle = Stream(streams, in_order=in_order), Stream(streams, in_order=in_order)
    await stream.asked("ab")
    streams.drain()
    with pytest.raises(trimtab.Unavailable, match="draining"):
        await idle.serving
    assert not stream.serving.done()
    for name in "ba":
        stream.ready[name].set_result(None)
    with pytest.raises(trimtab.Unavailable, match="draining"):
        await stream.serving
    assert sorted(stream.written) == ["a", "b"]


@pytest.mark.parametrize("in_order", [False, True])
async def test_answers_that_find_no_room_end_the_stream_with_the_reason(in_order: bool) -> None:
    unread = Unread(1000, 60.0, lambda peers: peers)
    others = unread.account("tenant", "other")
    others.add(450)
    stream = Stream(Streams(WINDOW, unread), in_order=in_order)
    await stream.asked("ab")
    for name in "ab":
        stream.ready[name].set_result(None)
    with pytest.raises(trimtab.ResourceExhausted, match="too many unread answers"):
        await stream.serving
