"""`embed` of both clients against a real gRPC server: what comes back, what is split, what is tried again."""

import asyncio
import threading
import time
from collections import deque
from typing import Any

import grpc
import numpy as np
import pytest

import trimtab
from tests.client.either import Async, Sync
from tests.client.fake_server import DIMENSIONS, SCALE, Abort, FakeServer, vectors
from trimtab.v1 import encoder_pb2 as pb

Either = Sync | Async
TEXTS = ["one", "two words", "", "drei Wörter hier", "四"]
UNAVAILABLE = Abort(grpc.StatusCode.UNAVAILABLE)


def many(count: int) -> list[str]:
    return [f"text {index}" for index in range(count)]


def test_the_rows_stand_in_the_order_of_the_texts(either: Either, server: FakeServer, url: str) -> None:
    array = either.call(url, "embed", TEXTS)
    assert array.shape == (5, DIMENSIONS)
    assert array.dtype == np.float32
    assert np.array_equal(array, vectors(TEXTS))


@pytest.mark.parametrize(
    ("dtype", "stored", "columns"), [("float16", "f2", 32), ("int8", "i1", 32), ("ubinary", "u1", 4)]
)
def test_dtypes(either: Either, url: str, dtype: str, stored: str, columns: int) -> None:
    detailed = either.call(url, "embed_detailed", TEXTS, dtype=dtype)
    assert detailed.vectors.dtype == np.dtype(stored)
    assert detailed.vectors.shape == (5, columns)
    assert detailed.dtype == dtype
    exact = vectors(TEXTS)
    if dtype == "int8":
        assert detailed.scale == pytest.approx(SCALE)
        assert np.abs(detailed.vectors * detailed.scale - exact).max() <= SCALE / 2 + 1e-6
    elif dtype == "ubinary":
        assert np.array_equal(np.unpackbits(detailed.vectors, axis=1), exact > 0)
        assert detailed.scale == 0


def test_every_option_reaches_the_server(either: Either, server: FakeServer, url: str) -> None:
    options = {"encoder": "fake", "version": "2", "role": "query", "dimensions": 8, "truncate": "start"}
    detailed = either.call(url, "embed_detailed", TEXTS, **options)
    assert np.array_equal(detailed.vectors, vectors(TEXTS, "2", pb.ROLE_QUERY)[:, :8])
    (request,) = server.requests
    assert (request.role, request.truncate, request.dimensions) == (pb.ROLE_QUERY, pb.TRUNCATE_START, 8)
    assert (detailed.encoder, detailed.version, detailed.space) == ("fake", "2", "space-2")
    assert server.metadata[0]["authorization"] == "Bearer x"


def test_details_say_what_the_vectors_are_and_where_the_time_went(either: Either, url: str) -> None:
    detailed = either.call(url, "embed_detailed", TEXTS)
    assert detailed.token_counts.tolist() == [3, 4, 2, 5, 3]
    assert detailed.times == trimtab.StageTimes(tokenize=0.001, queue=0.002, compute=0.003, output=0.004)


def test_no_texts_are_the_servers_to_refuse(either: Either, url: str) -> None:
    with pytest.raises(trimtab.InvalidArgument, match="texts is empty"):
        either.call(url, "embed", [])


def test_an_iterable_of_texts_will_do(either: Either, url: str) -> None:
    assert np.array_equal(either.call(url, "embed", (text for text in TEXTS)), vectors(TEXTS))


def test_what_exceeds_the_limit_is_split_and_of_one_version(
    either: Either, server: FakeServer, url: str
) -> None:
    texts = many(300)

    def swap(_: list[str]) -> None:
        server.newest = "2"  # a new version arrives while the first part is computed

    server.faults.gate = swap
    detailed = either.call(url, "embed_detailed", texts)
    assert np.array_equal(detailed.vectors, vectors(texts, "1"))
    assert detailed.version == "1"
    assert sorted(len(request.texts) for request in server.requests) == [44, 64, 64, 64, 64]
    assert detailed.times.tokenize == pytest.approx(5 * 0.001)


def test_long_texts_are_split_by_their_bytes(either: Either, server: FakeServer, url: str) -> None:
    server.limits.max_message_bytes = 10_000
    texts = ["ä" * 2_000, *many(10), "b" * 4_000, "c" * 4_000, "d" * 4_000]
    assert np.array_equal(either.call(url, "embed", texts), vectors(texts))
    assert max(request.ByteSize() for request in server.requests) <= 10_000
    assert len(server.requests) == 2


def test_a_version_unloaded_between_the_parts_is_said_and_not_replaced(
    either: Either, server: FakeServer, url: str
) -> None:
    server.faults.gate = lambda texts: server.loaded.discard("1")
    server.newest = "1"
    with pytest.raises(trimtab.FailedPrecondition, match="version 1 of 'fake' was unloaded"):
        either.call(url, "embed", many(300))


def test_parts_of_two_spaces_are_refused(either: Either, server: FakeServer, url: str) -> None:
    def tamper(response: pb.EmbedResponse) -> None:
        if response.embeddings[0].vectors.rows == 300 - 4 * 64:  # the last part
            response.embeddings[0].space = "another"

    server.faults.tamper = tamper
    with pytest.raises(trimtab.FailedPrecondition, match="space another"):
        either.call(url, "embed", many(300))


def test_a_text_that_is_too_long_is_the_servers_to_refuse(either: Either, url: str) -> None:
    with pytest.raises(trimtab.InvalidArgument, match="20000 bytes is too long"):
        either.call(url, "embed", ["x" * 20_000])


def test_limits_are_asked_for_once_and_again_after_a_refusal(server: FakeServer, url: str) -> None:
    with trimtab.Client(url) as client:
        for _ in range(3):
            client.embed(TEXTS)
        assert server.describes == 1
        server.limits.max_texts = 3  # the server came back with another configuration
        assert np.array_equal(client.embed(TEXTS), vectors(TEXTS))
        with pytest.raises(trimtab.InvalidArgument, match="20000 bytes is too long"):
            client.embed(["x" * 20_000])  # which no other limits would allow


TOO_LARGE = Abort(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "SERVER: Received message larger than max (9000 vs. 1000)",
    pushback_ms=-1,
)


@pytest.mark.parametrize("kind", [Sync, Async])
def test_a_server_that_takes_smaller_messages_than_it_did_gets_them(
    kind: type[Sync | Async], server: FakeServer, url: str
) -> None:
    texts, calls = ["x" * 400] * 8, Kept(kind, url)
    assert np.array_equal(calls("embed", texts), vectors(texts))
    assert len(calls("rescore", "query", texts)) == 8
    for method, args in (("embed", (texts,)), ("rescore", ("query", texts))):
        server.limits.max_message_bytes = 4_000_000
        calls("encoder")  # what it said before
        server.limits.max_message_bytes = 1_000
        server.faults.embeds, server.faults.rescores = deque([TOO_LARGE]), deque([TOO_LARGE])
        server.requests.clear()
        assert len(calls(method, *args)) == 8
        sent = server.requests if method == "embed" else server.rescores[-4:]
        assert len(sent) == 4 and max(message.ByteSize() for message in sent) <= 1_000
    calls.close()


class Kept:
    """One client for several calls, of either kind."""

    def __init__(self, kind: type[Sync | Async], url: str) -> None:
        self._runner = asyncio.Runner() if kind is Async else None
        if self._runner is None:
            self._client: Any = trimtab.Client(url)
        else:
            self._client = self._runner.run(self._made(url))

    async def _made(self, url: str) -> trimtab.AsyncClient:
        return trimtab.AsyncClient(url)

    def __call__(self, method: str, *args: Any) -> Any:
        result = getattr(self._client, method)(*args)
        return result if self._runner is None else self._runner.run(result)

    def close(self) -> None:
        closed = self._client.close()
        if self._runner is not None:
            self._runner.run(closed)
            self._runner.close()


@pytest.mark.parametrize("text", ["short", "a document " * 100_000])
def test_a_server_that_was_away_is_asked_again(
    either: Either, server: FakeServer, url: str, text: str
) -> None:
    server.limits.max_text_bytes = 10_000_000
    server.faults.embeds = deque([UNAVAILABLE, UNAVAILABLE])
    server.faults.describes = deque([UNAVAILABLE])
    assert np.array_equal(either.call(url, "embed", [text]), vectors([text]))


def test_a_call_that_a_server_took_with_it_is_made_again(
    either: Either, server: FakeServer, url: str
) -> None:
    server.faults.embeds = deque([Abort(grpc.StatusCode.CANCELLED)])
    assert np.array_equal(either.call(url, "embed", TEXTS), vectors(TEXTS))
    assert not server.faults.embeds


def test_a_full_server_is_asked_again_when_it_says(either: Either, server: FakeServer, url: str) -> None:
    server.faults.embeds = deque([Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=600)])
    started = time.monotonic()
    assert np.array_equal(either.call(url, "embed", TEXTS), vectors(TEXTS))
    assert time.monotonic() - started >= 0.6


def test_a_server_that_stays_full_says_when_to_come_back(
    either: Either, server: FakeServer, url: str
) -> None:
    full = Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=20)
    server.faults.embeds = deque([full] * 5)
    with pytest.raises(trimtab.ResourceExhausted, match="full") as caught:
        either.call(url, "embed", TEXTS)
    assert caught.value.retry_after == 0.02
    assert not server.faults.embeds


def test_parts_that_fill_the_server_are_sent_again_alone(
    either: Either, server: FakeServer, url: str
) -> None:
    """gRPC gives up on one of four parts, and it is answered once the others are."""
    full = Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=-1)  # do not try again by yourself
    server.faults.embeds = deque([full] * 3)
    assert np.array_equal(either.call(url, "embed", many(300)), vectors(many(300)))
    assert not server.faults.embeds and len(server.requests) == 5


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, trimtab.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, trimtab.PermissionDenied),
        (grpc.StatusCode.FAILED_PRECONDITION, trimtab.FailedPrecondition),
        (grpc.StatusCode.INTERNAL, trimtab.InternalError),
        (grpc.StatusCode.UNIMPLEMENTED, trimtab.Unimplemented),
        (grpc.StatusCode.DATA_LOSS, trimtab.TrimtabError),
    ],
)
def test_what_would_fail_again_is_not_tried_again(
    server: FakeServer, url: str, code: grpc.StatusCode, error: type[trimtab.TrimtabError]
) -> None:
    server.faults.embeds = deque([Abort(code, "for a reason"), None])
    with trimtab.Client(url) as client, pytest.raises(error, match="for a reason") as caught:
        client.embed(TEXTS)
    assert len(server.faults.embeds) == 1
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_the_deadline_travels_to_the_server_and_ends_the_wait(
    either: Either, server: FakeServer, url: str
) -> None:
    released = threading.Event()
    server.faults.gate = lambda texts: released.wait(60) and None
    try:
        with pytest.raises(trimtab.DeadlineExceeded, match=r"within 0\.5 s; pass a longer timeout"):
            either.call(url, "embed", TEXTS, timeout=0.5)
    finally:
        released.set()
    assert 0 < server.deadlines[0] < 0.6


def test_encoders_are_described_without_protobuf(either: Either, server: FakeServer, url: str) -> None:
    newest, oldest = either.call(url, "encoders")
    assert (newest.version, oldest.version) == ("2", "1")
    assert oldest == either.call(url, "encoder", "fake", "1")
    assert oldest == either.call(url, "encoder")
    assert oldest.limits == trimtab.Limits(max_texts=64, max_text_bytes=10_000, max_message_bytes=4_000_000)
    assert oldest.dtypes == ("float32", "float16", "int8", "ubinary")
    assert (oldest.space, oldest.query_prompt, oldest.normalized) == ("space-1", "query: ", True)


def test_an_unknown_encoder_is_not_found(either: Either, url: str) -> None:
    for method, arguments in (("encoder", ("other",)), ("embed", (TEXTS,))):
        options = {"encoder": "other"} if method == "embed" else {}
        with pytest.raises(trimtab.NotFound, match="other"):
            either.call(url, method, *arguments, **options)


def test_a_closed_client_says_so(url: str) -> None:
    client = trimtab.Client(url)
    client.close()
    with pytest.raises(trimtab.FailedPrecondition, match="is closed"):
        client.embed(TEXTS)


async def test_a_closed_async_client_says_so(url: str) -> None:
    client = trimtab.AsyncClient(url)
    await client.close()
    with pytest.raises(trimtab.FailedPrecondition, match="is closed"):
        await client.embed(TEXTS)


def test_an_unknown_option_is_a_mistake_of_the_caller(url: str) -> None:
    with trimtab.Client(url) as client, pytest.raises(TypeError, match="dimension"):
        client.embed(TEXTS, dimension=3)  # type: ignore[call-arg]
