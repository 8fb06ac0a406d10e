"""Split calls, without IO: what is sent, what is sent again, and in which order answers are taken."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core import steps
from trimtab.core.steps import PARTS_IN_FLIGHT, Await, Begin
from trimtab.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, TrimtabError
from trimtab.v1 import encoder_pb2 as pb


class Call:
    def __init__(self, name: str, error: TrimtabError | None) -> None:
        self.name, self.error, self.cancelled = name, error, False

    def cancel(self) -> None:
        self.cancelled = True


class Server:
    """Refuses a request that finds `room` others in flight, and those that `faults` names."""

    def __init__(self, room: int, faults: dict[str, TrimtabError] | None = None) -> None:
        self.room, self.faults = room, faults or {}
        self.flying: list[Call] = []
        self.sent: list[str] = []
        self.seen: list[int] = []  # how many were in flight when a request came

    def perform(self, step: steps.Step) -> object:
        if isinstance(step, Begin):
            assert isinstance(step.request, pb.EmbedRequest)
            name = step.request.encoder
            full = sum(call.error is None for call in self.flying) >= self.room
            call = Call(name, ResourceExhausted("full") if full else self.faults.get(name))
            self.seen.append(len(self.flying))
            self.sent.append(name)
            self.flying.append(call)
            return call
        assert isinstance(step, Await)
        self.flying.remove(step.call)
        if step.call.error is not None:
            raise step.call.error
        return step.call.name


def ask(
    server: Server, count: int, over: Callable[[TrimtabError], bool] = lambda error: False
) -> tuple[bool, list[tuple[int, str]]]:
    """Send so many requests. Returns whether all were answered, and what was taken."""
    taken: list[tuple[int, str]] = []
    requests = (pb.EmbedRequest(encoder=f"{number}") for number in range(count))
    work = steps.in_parts("Embed", requests, lambda number, answer: taken.append((number, answer)), over)
    return steps.run(work, server.perform), taken


def numbered(*numbers: int) -> list[tuple[int, str]]:
    return [(number, f"{number}") for number in numbers]


@given(count=st.integers(0, 12), room=st.integers(1, 6))
def test_a_call_never_fails_by_its_own_parts(count: int, room: int) -> None:
    server = Server(room)
    assert ask(server, count) == (True, numbered(*range(count)))
    assert max(server.seen, default=0) < PARTS_IN_FLIGHT and not server.flying


def test_what_was_refused_goes_again_when_nothing_is_in_flight_and_fewer_from_then_on() -> None:
    server = Server(room=2)
    ask(server, 8)
    assert server.sent == ["0", "1", "2", "3", "4", "5", "2", "3", "6", "7"]
    assert server.seen == [0, 1, 2, 3, 3, 3, 0, 1, 1, 1]


def test_the_last_part_goes_again_too() -> None:
    """It is alone when its refusal is read, but was not when it was refused."""
    server = Server(room=3)
    assert ask(server, 4) == (True, numbered(0, 1, 2, 3))
    assert server.sent == ["0", "1", "2", "3", "3"]


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_part_that_is_refused_alone_is_an_error(count: int) -> None:
    server = Server(room=0)
    with pytest.raises(ResourceExhausted, match="full"):
        ask(server, count)
    assert server.seen[-1] == 0 and server.sent.count("0") == {1: 1, 3: 3, 9: 3}[count]


def test_a_message_that_is_too_large_is_not_sent_again() -> None:
    server = Server(9, {"1": ResourceExhausted("Received message larger than max (9 vs. 8)")})
    with pytest.raises(ResourceExhausted, match="larger than max"):
        ask(server, 6)
    assert server.sent.count("1") == 1 and all(call.cancelled for call in server.flying)


def test_another_error_is_raised_at_once() -> None:
    server = Server(2, {"1": InvalidArgument("no")})
    with pytest.raises(InvalidArgument):
        ask(server, 9)
    assert len(server.sent) == 5


def test_after_the_end_nothing_is_sent_again_and_all_answers_are_taken() -> None:
    server = Server(2, {"1": DeadlineExceeded("late")})
    whole, taken = ask(server, 4, lambda error: isinstance(error, DeadlineExceeded))
    assert (whole, taken) == (False, numbered(0, 2))
    assert server.sent == ["0", "1", "2", "3"]
