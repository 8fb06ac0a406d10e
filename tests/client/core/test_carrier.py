"""A stream over its connections, with a clock and bells of its own and no IO."""

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from tests.client.fake_server import DIMENSIONS, FakeServer
from trimtab.core.carrier import END, Bell, Carrier, Connect, ReadText, Receive, Wait
from trimtab.core.descriptions import describe
from trimtab.core.exchange import Exchange
from trimtab.core.options import Options
from trimtab.errors import DeadlineExceeded, Unauthenticated, Unavailable
from trimtab.v1 import encoder_pb2 as pb

SERVER = FakeServer()  # not started: only its answers


class Connection:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """A carrier whose activities are run by hand."""

    def __init__(self, window: int = 4) -> None:
        self.now = 0.0
        self.rung: list[Bell] = []
        exchange = Exchange(Options(), describe(SERVER.describe("1")), window, timeout=10.0)
        self.carrier = Carrier(exchange, self.rung.append, lambda: self.now)
        self.feeding, self.conversation = self.carrier.feed(), self.carrier.converse()

    def read(self, *texts: Any) -> Any:
        """Feed texts, one for each time that one is asked for; the last step."""
        step = next(self.feeding)
        for text in texts:
            assert step == ReadText()
            step = self.feeding.send(text)
        return step

    def over(self, steps: Generator[Any, Any, Any], outcome: Any = None) -> Any:
        """The result of an activity whose next step is its end."""
        with pytest.raises(StopIteration) as end:
            steps.send(outcome)
        return end.value.value

    def answer(self, request: pb.EmbedStreamRequest) -> pb.EmbedStreamResponse:
        return pb.EmbedStreamResponse(id=request.id, response=SERVER.answer(request.request))  # type: ignore[arg-type]


def test_texts_are_read_no_further_than_the_window() -> None:
    world = World(window=2)
    assert world.read("a", "b") == Wait(Bell.ROOM, None)
    assert world.rung == [Bell.SENDABLE, Bell.SENDABLE]


def test_a_stream_from_its_first_text_to_its_end() -> None:
    world, connection = World(), Connection()
    world.read("a", "b")
    world.over(world.feeding, END)
    assert next(world.conversation) == Connect(0)
    assert world.conversation.send(connection) == Receive()
    requests = world.carrier.requests(0)
    request = next(requests)
    assert isinstance(request, pb.EmbedStreamRequest) and list(request.request.texts) == ["a", "b"]
    assert next(requests) == Wait(Bell.SENDABLE, None)
    vectors = world.carrier.vectors()
    assert next(vectors) == Wait(Bell.READY, 10.0)
    world.rung.clear()
    assert world.conversation.send(world.answer(request)) == Receive()
    assert Bell.READY in world.rung
    world.over(requests)
    assert [np.shape(vector) for vector in vectors] == [(DIMENSIONS,)] * 2
    assert Bell.ROOM in world.rung
    world.over(world.conversation)
    assert not connection.cancelled


def test_a_connection_that_breaks_is_followed_by_another() -> None:
    world = World()
    world.read("a")
    next(world.conversation)
    world.conversation.send(Connection())
    before = world.carrier.requests(0)
    next(before)
    wait = world.conversation.throw(Unavailable("gone"))
    assert isinstance(wait, Wait) and wait.bell is Bell.CLOSED and wait.seconds is not None
    world.over(before)  # the writer of the connection that broke
    world.now += wait.seconds / 2  # woken up too early
    assert isinstance(world.conversation.send(None), Wait)
    world.now += wait.seconds
    assert world.conversation.send(None) == Connect(1)
    world.conversation.send(Connection())
    again = next(world.carrier.requests(1))
    assert isinstance(again, pb.EmbedStreamRequest) and list(again.request.texts) == ["a"]


def test_an_error_that_no_connection_cures_is_raised() -> None:
    world = World()
    world.read("a")
    next(world.conversation)
    with pytest.raises(StopIteration):
        world.conversation.throw(Unauthenticated("who are you"))
    with pytest.raises(Unauthenticated):
        next(world.carrier.vectors())


@pytest.mark.parametrize("where", ["connecting", "reading"])
def test_a_defect_is_raised_where_vectors_are_awaited(where: str) -> None:
    world = World()
    world.read("a")
    next(world.conversation)
    if where == "reading":
        world.conversation.send(Connection())
    with pytest.raises(StopIteration):
        world.conversation.throw(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        next(world.carrier.vectors())


def test_what_the_texts_raise_comes_after_the_vectors_before() -> None:
    world = World()
    world.read("a")
    with pytest.raises(StopIteration):
        world.feeding.throw(KeyError("a text"))
    next(world.conversation)
    world.conversation.send(Connection())
    request = next(world.carrier.requests(0))
    assert isinstance(request, pb.EmbedStreamRequest)
    world.conversation.send(world.answer(request))
    vectors = world.carrier.vectors()
    assert np.shape(next(vectors)) == (DIMENSIONS,)
    with pytest.raises(KeyError, match="a text"):
        next(vectors)


def test_a_wait_that_is_too_long_is_the_deadline() -> None:
    world = World()
    world.read("a")
    vectors = world.carrier.vectors()
    assert next(vectors) == Wait(Bell.READY, 10.0)
    world.now = 10.5
    with pytest.raises(DeadlineExceeded):
        next(vectors)


def test_closing_ends_everything_and_sends_no_good_end_before_the_cancel() -> None:
    world, connection = World(), Connection()
    step = world.read("a")
    assert step == ReadText()
    next(world.conversation)
    world.conversation.send(connection)
    requests = world.carrier.requests(0)
    assert world.carrier.close() is connection
    assert next(requests) == Wait(Bell.SENDABLE, None)
    world.carrier.silence()
    assert set(world.rung) >= set(Bell)
    world.over(requests)
    world.over(world.feeding, "b")
    assert list(world.carrier.vectors()) == []
    world.over(world.conversation)


def test_a_connection_that_opens_after_the_stream_was_closed_is_cancelled() -> None:
    world, connection = World(), Connection()
    world.read("a")
    next(world.conversation)
    world.carrier.close()
    world.carrier.silence()
    world.conversation.send(connection)
    assert connection.cancelled
