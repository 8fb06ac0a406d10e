"""The conversation of a stream, with a clock of its own and no IO."""

import math

import numpy as np
import pytest

from tests.client.fake_server import FakeServer, vectors
from trimtab.core.descriptions import describe
from trimtab.core.exchange import ATTEMPTS, LATE_ATTEMPTS, MESSAGE_TEXTS, Exchange
from trimtab.core.options import Options
from trimtab.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from trimtab.v1 import encoder_pb2 as pb

SERVER = FakeServer()  # not started: only its answers


def exchange(window: int = 8, timeout: float = 10.0) -> Exchange:
    return Exchange(Options(), describe(SERVER.describe("1")), window, timeout)


def reply(request: pb.EmbedStreamRequest) -> pb.EmbedStreamResponse:
    return pb.EmbedStreamResponse(id=request.id, response=SERVER.answer(request.request))  # type: ignore[arg-type]


def refusal(request: pb.EmbedStreamRequest, code: int, retry_after_ms: int = 0) -> pb.EmbedStreamResponse:
    error = pb.Error(code=code, message="no", retry_after_ms=retry_after_ms)
    return pb.EmbedStreamResponse(id=request.id, error=error)


def send(exchange: Exchange, now: float = 0.0) -> pb.EmbedStreamRequest:
    request = exchange.send(now)
    assert request is not None
    return request


def test_every_request_names_the_version_of_the_start() -> None:
    stream = exchange()
    stream.add("a", 0)
    request = send(stream).request
    assert (request.encoder, request.version, list(request.texts)) == ("fake", "1", ["a"])


def test_waiting_texts_travel_together() -> None:
    stream = exchange(window=40)
    for index in range(40):
        stream.add(f"text {index}", 0)
    assert stream.room == 0
    assert [len(send(stream).request.texts) for _ in range(3)] == [MESSAGE_TEXTS, MESSAGE_TEXTS, 8]
    assert stream.send(0) is None


def test_vectors_come_in_order_and_the_stream_ends() -> None:
    stream = exchange()
    stream.add("a", 0)
    first = send(stream)
    stream.add("b", 0)
    second = send(stream)
    stream.end()
    stream.receive(reply(second), 1)
    assert stream.take(1) is None
    stream.receive(reply(first), 1)
    assert stream.answered
    assert stream.complete
    got = [stream.take(1), stream.take(1)]
    assert np.array_equal(got, vectors(["a", "b"]))
    assert stream.finished
    assert stream.take(1) is None


def test_patience_ends_after_the_timeout_without_an_answer() -> None:
    stream = exchange(timeout=10)
    assert stream.patience(100) is None  # nothing is owed
    stream.add("a", 100)
    request = send(stream, 100)
    stream.add("b", 105)
    send(stream, 105)
    assert stream.patience(105) == 5
    stream.receive(reply(request), 106)
    assert stream.patience(107) == 9
    assert stream.take(200) is not None  # what is there is given out, however late
    with pytest.raises(DeadlineExceeded, match="for 10 s"):
        stream.take(116)


def test_patience_may_be_endless() -> None:
    stream = exchange(timeout=math.inf)
    stream.add("a", 0)
    assert stream.patience(1e9) is None


def test_a_full_server_is_asked_again_when_it_says() -> None:
    stream = exchange()
    stream.add("a", 0)
    request = send(stream)
    stream.receive(refusal(request, 8, retry_after_ms=1500), 1)
    assert stream.pause(1) == 1.5
    assert stream.send(2.4) is None
    assert send(stream, 2.5) == request


def test_a_server_that_stays_full_ends_the_patience_and_is_named() -> None:
    stream = exchange(timeout=10)
    stream.add("a", 0)
    for now in range(10):
        stream.receive(refusal(send(stream, now), 8, retry_after_ms=500), now)
    with pytest.raises(DeadlineExceeded) as caught:
        stream.take(10)
    assert isinstance(caught.value.__cause__, ResourceExhausted)


def test_without_a_time_to_wait_the_waits_grow() -> None:
    stream = exchange()
    stream.add("a", 0)
    pauses = []
    for _ in range(4):
        stream.receive(refusal(send(stream, 1000), 14), 0)
        pauses.append(stream.pause(0))
    assert 0.1 <= pauses[0] <= 0.2
    assert 0.8 <= pauses[3] <= 1.6


def test_another_error_of_a_request_is_raised_in_its_place() -> None:
    stream = exchange()
    stream.add("a", 0)
    stream.receive(refusal(send(stream), 3), 0)
    with pytest.raises(InvalidArgument, match="no"):
        stream.take(0)


def test_a_version_that_a_replica_does_not_know_yet_is_waited_for() -> None:
    stream = exchange()
    stream.add("a", 0)
    request = send(stream)
    stream.receive(refusal(request, 5), 0)
    assert send(stream, 1000) == request
    stream.receive(reply(request), 1000)
    assert stream.take(1000) is not None


def test_a_version_that_is_gone_is_no_reason_to_take_another() -> None:
    stream = exchange()
    stream.add("a", 0)
    for _ in range(LATE_ATTEMPTS + 1):  # a replica may know it a little later than the others
        stream.receive(refusal(send(stream, 1000), 5), 0)
    assert stream.pause(0) is None
    with pytest.raises(FailedPrecondition, match="version 1 of 'fake' was unloaded"):
        stream.take(0)


@pytest.mark.parametrize("first", [True, False])
def test_a_vector_of_another_space_is_never_given_out(first: bool) -> None:
    stream = exchange()
    if not first:
        stream.add("a", 0)
        stream.receive(reply(send(stream)), 0)
        assert stream.take(0) is not None
    stream.add("b", 0)
    answer = reply(send(stream))
    answer.response.embeddings[0].space = "space-2"
    stream.receive(answer, 0)
    with pytest.raises(FailedPrecondition, match="space-2"):
        stream.take(0)


def test_after_a_break_only_what_was_not_answered_is_sent_again() -> None:
    stream = exchange(window=64)
    requests = []
    for text in "abc":
        stream.add(text, 0)
        requests.append(send(stream))
    stream.receive(reply(requests[1]), 0)
    delay = stream.broke(Unavailable("gone"))
    assert delay is not None
    assert 0.1 <= delay <= 0.2
    assert [send(stream), send(stream)] == [requests[0], requests[2]]
    assert stream.send(0) is None


def test_an_end_with_open_requests_counts_as_a_break() -> None:
    stream = exchange()
    stream.add("a", 0)
    request = send(stream)
    assert stream.broke(None) is not None
    assert send(stream) == request


def test_a_connection_waits_as_long_as_the_server_asks() -> None:
    stream = exchange()
    stream.add("a", 0)
    send(stream)
    assert stream.broke(ResourceExhausted("full", retry_after=7.0)) == 7.0


def test_breaks_in_a_row_are_bounded_and_an_answer_begins_a_new_row() -> None:
    stream = exchange()
    stream.add("a", 0)
    for _ in range(ATTEMPTS - 1):
        request = send(stream)
        assert stream.broke(Unavailable("gone")) is not None
    stream.receive(reply(send(stream)), 0)
    stream.add("b", 0)
    for _ in range(ATTEMPTS - 1):
        request = send(stream)
        assert stream.broke(Unavailable("gone")) is not None
    assert list(request.request.texts) == ["b"]
    assert stream.broke(Unavailable("gone for good")) is None
    assert stream.complete
    assert np.array_equal(stream.take(0), vectors(["a"])[0])
    with pytest.raises(Unavailable, match="gone for good"):
        stream.take(0)


def test_breaks_of_an_idle_stream_do_not_count() -> None:
    stream = exchange()
    for _ in range(3 * ATTEMPTS):
        assert stream.broke(Unavailable("restarting")) is not None
    stream.add("a", 0)
    send(stream)
    assert stream.broke(Unavailable("restarting")) is not None


def test_a_break_that_no_other_connection_cures_fails_the_stream() -> None:
    stream = exchange()
    assert stream.broke(Unauthenticated("who?")) is None
    with pytest.raises(Unauthenticated):
        stream.take(0)


def test_an_answer_to_nothing_is_a_fault_of_the_server() -> None:
    stream = exchange()
    stream.receive(pb.EmbedStreamResponse(id=9), 0)
    with pytest.raises(InternalError, match="request 9"):
        stream.take(0)


def test_the_window_holds_at_least_one_text() -> None:
    with pytest.raises(InvalidArgument, match="window is 0"):
        exchange(window=0)
