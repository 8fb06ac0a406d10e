"""`embed_stream` of both clients against a real gRPC server that breaks, refuses, shuffles and stalls."""

import gc
import itertools
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import grpc
import numpy as np
import pytest

import trimtab
from tests.client.either import Async, Sync
from tests.client.fake_server import SCALE, Abort, FakeServer, vector, vectors
from trimtab.core.descriptions import describe
from trimtab.core.exchange import Exchange
from trimtab.core.options import Options
from trimtab.sdk.credentials import CallMetadata, Metadata
from trimtab.sdk.stream import EmbeddingStream
from trimtab.sdk.target import target
from trimtab.v1 import encoder_pb2 as pb

Either = Sync | Async
GONE = Abort(grpc.StatusCode.UNAVAILABLE, "going away")


def many(count: int) -> list[str]:
    return [f"text {index}" for index in range(count)]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what another thread will bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("trimtab-stream")]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("window", [1, 7, 256])
def test_vectors_come_in_the_order_of_the_texts(
    either: Either, server: FakeServer, url: str, shuffle: bool, window: int
) -> None:
    server.faults.shuffle = shuffle
    texts = many(20 if shuffle else 300)
    assert np.array_equal(either.stream(url, iter(texts), window=window), vectors(texts))
    assert sorted(server.texts()) == sorted(texts)
    assert server.ended.get(timeout=60) == "done"
    assert not stream_threads()


def test_no_texts_are_no_vectors(either: Either, url: str) -> None:
    assert either.stream(url, []) == []


def test_options_reach_the_server(either: Either, server: FakeServer, url: str) -> None:
    got = either.stream(url, ["a"], role="passage", dimensions=4, dtype="float16", version="2")
    assert got[0].dtype == np.float16
    assert np.array_equal(got[0], vectors(["a"], "2", pb.ROLE_PASSAGE)[0, :4].astype(np.float16))


def test_many_texts_travel_in_few_messages(server: FakeServer, url: str) -> None:
    asyncio_texts = many(2_000)
    assert len(Async().stream(url, asyncio_texts)) == 2_000
    assert len(server.requests) == 125


def test_messages_keep_to_the_servers_limits(either: Either, server: FakeServer, url: str) -> None:
    server.limits.max_texts = 5
    server.limits.max_message_bytes = 1_000
    texts = [*many(50), *("x" * 400 for _ in range(5))]
    assert np.array_equal(either.stream(url, texts), vectors(texts))
    assert max(len(request.texts) for request in server.requests) == 5
    assert max(request.ByteSize() for request in server.requests) <= 1_000


def test_only_what_had_no_answer_is_sent_again(either: Either, server: FakeServer, url: str) -> None:
    server.faults.breaks = deque([(3, GONE), (0, GONE), (2, GONE), (1, None)])
    texts = many(400)
    assert np.array_equal(either.stream(url, texts), vectors(texts))
    assert not server.faults.breaks
    times = Counter(server.texts())
    assert set(times) == set(texts)
    # Answered once is never asked for again: the first messages of each connection came through.
    assert all(times[text] == 1 for text in texts[:32])


def test_a_server_that_comes_back_at_the_same_address_is_found(server: FakeServer, url: str) -> None:
    def texts() -> Iterator[str]:
        yield from many(50)
        server.stop()
        server.start(url)
        yield from (f"later {index}" for index in range(50))

    expected = many(50) + [f"later {index}" for index in range(50)]
    assert np.array_equal(Sync().stream(url, texts()), vectors(expected))


def test_a_server_that_stays_away_is_given_up(
    either: Either, server: FakeServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.core.exchange.MAX_BACKOFF", 0.01)
    server.faults.breaks = deque([(1, GONE), *[(0, GONE)] * 7])
    with pytest.raises(trimtab.Unavailable, match=f"{url}: (going away|the connection broke)"):
        either.stream(url, many(100))
    assert not server.faults.breaks


def test_a_break_for_good_is_not_tried_again(either: Either, server: FakeServer, url: str) -> None:
    # More than one, because grpc.aio may lose the status of the first: see channel.from_break.
    denied = Abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
    server.faults.breaks = deque([(1, denied)] * 20)
    with pytest.raises(trimtab.PermissionDenied, match="not you"):
        either.stream(url, many(100))
    assert len(server.faults.breaks) == 19 or isinstance(either, Async)


def test_a_message_that_became_too_large_is_not_sent_again(
    either: Either, server: FakeServer, url: str
) -> None:
    words = "SERVER: Received message larger than max (9000 vs. 1000)"
    server.faults.breaks = deque([(1, Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, words))] * 20)
    with pytest.raises(trimtab.FailedPrecondition, match="open the stream again"):
        either.stream(url, many(100))


@pytest.mark.parametrize("back", [True, False])
def test_a_token_file_that_is_away_when_a_stream_reconnects(
    back: bool, server: FakeServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renewed in two steps, it is read again; where it stays away, the stream ends and says so."""
    monkeypatch.setattr("trimtab.core.exchange.MAX_BACKOFF", 0.01)
    monkeypatch.setattr("trimtab.sdk.credentials.INTERVAL", 0.0)
    token = tmp_path / "token"
    token.write_text("first")
    looked = 0
    read = CallMetadata.get

    def get(self: CallMetadata) -> Metadata:
        nonlocal looked
        looked += not token.exists()
        if back and looked == 3:
            token.write_text("second")
        return read(self)

    monkeypatch.setattr(CallMetadata, "get", get)
    server.faults.breaks = deque([(2, GONE)])
    with trimtab.Client(url, token=token, timeout=math.inf) as client:
        stream = client.embed_stream(many(100))
        got = [next(stream)]
        token.unlink()
        if back:
            got.extend(stream)
            assert np.array_equal(got, vectors(many(100)))
            assert server.metadata[-1]["authorization"] == "Bearer second"
        else:
            with pytest.raises(trimtab.ConfigError, match=r"token: the file .* cannot be read"):
                got.extend(stream)
    until(lambda: not stream_threads())


async def test_the_same_of_an_async_stream(
    server: FakeServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.core.exchange.MAX_BACKOFF", 0.01)
    monkeypatch.setattr("trimtab.sdk.credentials.INTERVAL", 0.0)
    token = tmp_path / "token"
    token.write_text("first")
    server.faults.breaks = deque([(2, GONE)])
    async with trimtab.AsyncClient(url, token=token, timeout=math.inf) as client:
        stream = client.embed_stream(many(100))
        await anext(stream)
        token.unlink()
        with pytest.raises(trimtab.ConfigError, match=r"token: the file .* cannot be read"):
            async for _ in stream:
                pass


def test_a_timeout_says_what_went_wrong_last(server: FakeServer, url: str) -> None:
    server.faults.breaks = deque([(0, GONE)] * 50)
    with trimtab.Client(url) as client:
        with pytest.raises(trimtab.DeadlineExceeded, match=r"The last error was: .*going away"):
            list(client.embed_stream(many(3), timeout=0.3))


class Nameless(grpc.RpcError):
    """An error without a status, which gRPC does not raise."""


@pytest.mark.parametrize(
    ("fault", "raised"), [(ZeroDivisionError, ZeroDivisionError), (Nameless, AttributeError)]
)
def test_a_fault_in_the_streams_own_thread_is_raised(fault: type[Exception], raised: type[Exception]) -> None:
    """Nobody waits for ever for a thread that is gone."""

    def fails(_: object) -> NoReturn:
        raise fault

    exchange = Exchange(Options(), describe(FakeServer().describe("1")), 4, math.inf)
    stream = EmbeddingStream(
        exchange, many(3), fails, target("127.0.0.1:1", encrypted=False, credentials=False)
    )
    with pytest.raises(raised):
        next(stream)
    until(lambda: not stream_threads())


def test_a_refused_request_is_sent_again_when_the_server_says(
    either: Either, server: FakeServer, url: str
) -> None:
    full = pb.Error(code=8, message="full", retry_after_ms=400)
    server.faults.refusals = {"text 5": deque([full, full])}
    started = time.monotonic()
    assert np.array_equal(either.stream(url, many(100)), vectors(many(100)))
    assert time.monotonic() - started >= 0.8
    assert Counter(server.texts())["text 5"] == 3
    assert Counter(server.texts())["text 99"] == 1


def test_an_error_of_a_request_is_raised_in_its_place(server: FakeServer, url: str) -> None:
    server.limits.max_texts = 1
    got = []
    with trimtab.Client(url) as client, pytest.raises(trimtab.InvalidArgument, match="too long"):
        for row in client.embed_stream([*many(5), "x" * 20_000, "after"]):
            got.append(row)
    assert np.array_equal(got, vectors(many(5)))


def test_what_the_texts_raise_is_raised_after_the_vectors_before(either: Either, url: str) -> None:
    got = []

    def texts() -> Iterator[str]:
        yield from many(5)
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        either.stream(url, texts())
    with trimtab.Client(url) as client:
        stream = client.embed_stream(texts())
        with pytest.raises(OSError, match="the disk"):
            got.extend(stream)
        assert list(stream) == []
    assert len(got) in {0, 5}  # `extend` keeps nothing of a failed iterator, or all of it


def test_what_is_no_text_is_refused_in_its_place(either: Either, url: str) -> None:
    with pytest.raises(trimtab.InvalidArgument, match=r"texts\[2\] is int"):
        either.stream(url, ["a", "b", 3])
    with pytest.raises(trimtab.InvalidArgument, match="pass a list"):
        either.stream(url, "a single text")


def test_an_unknown_encoder_is_not_found(either: Either, url: str) -> None:
    with pytest.raises(trimtab.NotFound, match="other"):
        either.stream(url, ["a"], encoder="other")


def test_a_new_version_does_not_enter_a_stream(either: Either, server: FakeServer, url: str) -> None:
    def swap(texts: list[str]) -> None:
        server.newest = "2"

    server.faults.gate = swap
    server.faults.breaks = deque([(2, GONE)])
    texts = many(200)
    assert np.array_equal(either.stream(url, texts), vectors(texts, "1"))


def test_a_server_that_falls_silent_is_not_waited_for(either: Either, server: FakeServer, url: str) -> None:
    released = threading.Event()

    def gate(texts: list[str]) -> None:
        if "text 60" in texts:
            released.wait(60)

    server.faults.gate = gate
    try:
        with pytest.raises(trimtab.DeadlineExceeded, match=r"for 0\.5 s"):
            either.stream(url, many(100), timeout=0.5)
    finally:
        released.set()
    assert server.ended.get(timeout=60) == "cancelled"


def test_the_texts_are_read_no_further_than_the_window(server: FakeServer, url: str) -> None:
    read = itertools.count()
    seen = 0

    def texts() -> Iterator[str]:
        nonlocal seen
        while True:
            seen = next(read) + 1
            yield f"text {seen}"

    with trimtab.Client(url) as client, client.embed_stream(texts(), window=10) as stream:
        until(lambda: seen == 10)
        for taken in range(1, 30):
            next(stream)
            assert seen <= 10 + taken
        until(lambda: seen == 39)


def test_each_text_leaves_at_once_however_long_the_next_takes(url: str) -> None:
    """The next text is only made when the vector of the last is there: nothing may be held back."""
    answered: queue.Queue[int] = queue.Queue()

    def texts() -> Iterator[str]:
        for index in range(5):
            yield f"text {index}"
            assert answered.get(timeout=100) == index

    with trimtab.Client(url) as client:
        for index, row in enumerate(client.embed_stream(texts())):
            assert np.array_equal(row, vector(f"text {index}"))
            answered.put(index)


@pytest.mark.parametrize("how", ["break", "close", "with", "throw"])
def test_leaving_early_ends_the_call_and_its_threads(server: FakeServer, url: str, how: str) -> None:
    endless = (f"text {index}" for index in itertools.count())
    with trimtab.Client(url) as client:
        stream = client.embed_stream(endless)
        assert stream.encoder.space == "space-1"
        if how == "break":
            for _ in stream:
                break
            del stream
            gc.collect()
        elif how == "close":
            next(stream)
            stream.close()
            stream.close()
            assert list(stream) == []
        else:
            with pytest.raises(RuntimeError), stream:
                next(stream)
                raise RuntimeError("of the caller")
        assert server.ended.get(timeout=60) == "cancelled"
        until(lambda: not stream_threads())
        assert len(client.embed(["still there"])) == 1
    assert len(server.texts()) < 2_000


def test_a_stream_ends_while_its_texts_are_awaited(server: FakeServer, url: str) -> None:
    release = threading.Event()

    def texts() -> Iterator[str]:
        yield "a"
        release.wait(60)

    with trimtab.Client(url) as client:
        stream = client.embed_stream(texts())
        next(stream)
        stream.close()
        assert server.ended.get(timeout=60) == "cancelled"
        until(lambda: stream_threads() == ["trimtab-stream-feeder"])  # in the caller's code
        release.set()
        until(lambda: not stream_threads())


def test_closing_the_client_ends_its_streams(url: str) -> None:
    release = threading.Event()

    def texts() -> Iterator[str]:
        yield "a"
        release.wait(60)

    client = trimtab.Client(url)
    stream = client.embed_stream(texts())
    next(stream)
    client.close()
    with pytest.raises(trimtab.Cancelled):
        next(stream)
    release.set()
    until(lambda: not stream_threads())


def test_int8_vectors_come_with_their_scale(url: str) -> None:
    with trimtab.Client(url) as client, client.embed_stream(["a"], dtype="int8") as stream:
        row = next(stream)
        assert row.dtype == np.int8
        assert stream.scale == pytest.approx(SCALE)
        row += 1  # the caller's own
