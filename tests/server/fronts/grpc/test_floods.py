"""One caller without credentials floods the server: it costs bounded memory, and nobody else's calls."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import trimtab
from bench.chaos import attacks, known
from bench.chaos.attacks import END_HEADERS, END_STREAM, HEADERS, PREFACE, RST, SETTINGS, frame
from tests.server.server_process import ServerProcess, serve
from trimtab.v1 import encoder_pb2 as pb
from trimtab_server.config import Config
from trimtab_server.fronts.grpc import listeners, pace, reflection
from trimtab_server.fronts.grpc.arriving import Arriving
from trimtab_server.fronts.grpc.boundary import Boundary
from trimtab_server.fronts.grpc.entrance import Entrance
from trimtab_server.fronts.grpc.guard import Guard
from trimtab_server.fronts.grpc.intake import Intake
from trimtab_server.fronts.grpc.senders import Tenants
from trimtab_server.fronts.grpc.unread import Unread

CHECK = "/grpc.health.v1.Health/Check"
ACKNOWLEDGED = 1
CANCEL = (8).to_bytes(4, "big")


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(known.bundle().parent.parent, tmp_path_factory.mktemp("floods")) as running:
        with trimtab.Client(running.url, timeout=100) as client:
            client.embed(["w1"])
        yield running


@contextlib.contextmanager
def costing_less_than(megabytes: float, server: ServerProcess) -> Iterator[None]:
    """What happens here costs the server less memory than this at any time, and others are answered."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak is counted from now on
    before = resident(server, "VmRSS")
    yield
    with trimtab.Client(server.url, timeout=100) as client:
        assert client.embed(["w1"]).shape == (1, known.WIDTH)
    assert resident(server, "VmHWM") - before < megabytes


def resident(server: ServerProcess, which: str) -> float:
    """Megabytes, now (VmRSS) or at most (VmHWM)."""
    status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(which))


@pytest.mark.parametrize(
    ("path", "algorithm"),
    [
        (CHECK, grpc.Compression.Gzip),
        (CHECK, grpc.Compression.Deflate),
        (attacks.EMBED, grpc.Compression.Gzip),
        (attacks.STREAM, grpc.Compression.Gzip),
        (attacks.INFER, grpc.Compression.Gzip),
    ],
)
def test_a_compressed_message_is_refused_before_it_is_inflated(
    flooded: ServerProcess, path: str, algorithm: grpc.Compression
) -> None:
    said = len(flooded.log)
    with (
        costing_less_than(32, flooded),
        grpc.insecure_channel(flooded.url, [("grpc.max_send_message_length", -1)]) as channel,
    ):
        call: Any = channel.unary_unary(path)
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(64 << 20), timeout=60, compression=algorithm)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "without compression" in str(caught.value.details())
    assert not flooded.log[said:]  # a line for each would fill the disk


@pytest.mark.parametrize("path", [CHECK, "/no/such", attacks.EMBED])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("acknowledged", [False, True])
def test_calls_by_the_thousand_on_one_connection(
    flooded: ServerProcess, path: str, reset: bool, acknowledged: bool
) -> None:
    """max_calls_per_connection: what is more is refused before it becomes a call."""
    head = attacks.headers(path)
    begin = PREFACE + frame(SETTINGS, 0, 0) + (frame(SETTINGS, ACKNOWLEDGED, 0) if acknowledged else b"")
    with costing_less_than(32, flooded):
        with socket.create_connection(("127.0.0.1", int(flooded.url.rpartition(":")[2])), 30) as connection:
            connection.sendall(begin)
            for first in range(1, 40_000, 200):
                calls = (
                    frame(HEADERS, END_HEADERS | END_STREAM, number, head)
                    + (frame(RST, 0, number, CANCEL) if reset else b"")
                    for number in range(first, first + 200, 2)
                )
                with contextlib.suppress(TimeoutError):  # once too many are refused, the server reads no more
                    connection.settimeout(1)
                    connection.sendall(b"".join(calls))


async def test_calls_of_a_client_that_takes_others_back_are_not_refused(flooded: ServerProcess) -> None:
    """A hundred are taken back before their message came, then one is meant; again and again."""
    request = pb.EmbedRequest(texts=[known.text(1)], encoder=known.NAME).SerializeToString()
    head = attacks.headers(attacks.EMBED)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(flooded.url.rpartition(":")[2]))
    writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACKNOWLEDGED, 0))
    for first in range(1, 601, 202):
        for number in range(first, first + 200, 2):
            writer.write(frame(HEADERS, END_HEADERS, number, head) + frame(RST, 0, number, CANCEL))
        meant = first + 200
        writer.write(frame(HEADERS, END_HEADERS, meant, head))
        writer.write(frame(attacks.DATA, END_STREAM, meant, attacks.message(request)))
        assert (await until_over(reader, {meant}))[meant] == HEADERS
    writer.close()


async def until_over(reader: asyncio.StreamReader, calls: Collection[int]) -> dict[int, int]:
    """Read until these calls have ended; the kind of frame by which each did."""
    over: dict[int, int] = {}
    async with asyncio.timeout(60):
        while not over.keys() >= set(calls):
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == RST or (head[3] == HEADERS and head[4] & END_STREAM):
                over.setdefault(int.from_bytes(head[5:], "big"), head[3])
    return over


async def test_calls_that_are_answered_in_pieces_get_their_own_vectors(flooded: ServerProcess) -> None:
    """Large and small ones of several connections take turns; some texts come again, and some calls leave."""

    async def embed(call: Any, numbers: list[int]) -> None:
        request = pb.EmbedRequest(texts=map(known.text, numbers), encoder=known.NAME)
        vectors = (await call(request, timeout=100)).embeddings[0].vectors
        got = np.frombuffer(vectors.data, "<f4").reshape(len(numbers), known.WIDTH)
        np.testing.assert_allclose(got, known.vectors(numbers), atol=known.TOLERANCE)

    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for caller in range(5):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(flooded.url, options))
            method: Any = channel.unary_unary(
                attacks.EMBED, pb.EmbedRequest.SerializeToString, pb.EmbedResponse.FromString
            )
            large = [1000 * caller + number % 90 for number in range(200)]  # the last ones again
            calls += [embed(method, large), embed(method, [7]), embed(method, [*large, 7])]
            gone = method(pb.EmbedRequest(texts=["w1", *map(known.text, large)], encoder=known.NAME))
            stack.callback(gone.cancel)
        await asyncio.gather(*calls)


async def test_calls_by_the_thousand_over_many_connections_are_all_answered(flooded: ServerProcess) -> None:
    """And so is another's: some wait in the lobby, but none is forgotten there, or refused."""
    request = pb.EmbedRequest(texts=["w1"], encoder=known.NAME).SerializeToString()
    head, calls = attacks.headers(attacks.EMBED), range(1, 2 * 128, 2)
    begin = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACKNOWLEDGED, 0)
    begin += frame(attacks.WINDOW, 0, 0, (1 << 30).to_bytes(4, "big"))
    parts = (
        frame(HEADERS, END_HEADERS, number, head)
        + frame(attacks.DATA, END_STREAM, number, attacks.message(request))
        for number in calls
    )
    everything = begin + b"".join(parts)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(trimtab.AsyncClient(flooded.url, timeout=100))
        reading = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(flooded.url.rpartition(":")[2]))
            stack.callback(writer.close)
            writer.write(everything)
            reading.append(until_over(reader, calls))
        got = await asyncio.gather(client.embed(["w1"]), *reading)
    assert got[0].shape == (1, known.WIDTH)
    for over in got[1:]:
        assert set(over.values()) == {HEADERS}


@pytest.mark.parametrize("parts", [1, 90])
def test_headers_are_bounded_and_the_same_are_always_refused(flooded: ServerProcess, parts: int) -> None:
    """By their bytes and 32 for each, as HTTP/2 counts them."""

    def headers(size: int) -> tuple[tuple[str, str], ...]:
        return tuple((f"x-{number}", "a" * (size // parts - 32)) for number in range(parts))

    with grpc.insecure_channel(flooded.url, [("grpc.enable_retries", 0)]) as channel:
        check: Any = channel.unary_unary(CHECK)
        for _ in range(20):
            assert check(b"", metadata=headers(7000), timeout=60)
            with pytest.raises(grpc.RpcError) as caught:
                check(b"", metadata=headers(8500), timeout=60)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "odd",
    [
        attacks.headers(CHECK, **{"grpc-timeout": "noise"}),
        attacks.headers(CHECK, **{"grpc-encoding": "noise"}),
        attacks.headers(CHECK, authorization="Bearer secret@@").replace(b"@@", b"\xff\xff"),
        attacks.headers("/no/such@@").replace(b"@@", b"\xff\xff"),
    ],
)
async def test_headers_that_cannot_be_read_are_not_written_down(flooded: ServerProcess, odd: bytes) -> None:
    """A line for each would fill the disk, and tell what the header holds."""
    said, calls = len(flooded.log), range(1, 40, 2)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(flooded.url.rpartition(":")[2]))
    writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACKNOWLEDGED, 0))
    writer.write(b"".join(frame(HEADERS, END_HEADERS | END_STREAM, number, odd) for number in calls))
    await until_over(reader, calls)
    writer.close()
    assert not flooded.log[said:]


async def test_messages_of_a_stream_are_paced_as_calls_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they cost the client nothing: many questions in one call of reflection."""
    waited: Counter[float] = Counter()

    async def wait(self: pace.Pacer, peer: str, cost: float) -> None:
        waited[cost] += 1

    monkeypatch.setattr(pace.Pacer, "wait", wait)
    intake, guard = Intake(10, 1 << 20, Arriving(1 << 20)), Guard(None, None, lambda status: None)
    entrance = Entrance(intake, Unread(1 << 20, 10, lambda peers: ()), Tenants(""), guard)
    boundary = Boundary(entrance, 64, 1 << 20)
    server = listeners.make(Config(), [boundary])
    reflection.add_to(server, ())
    port = listeners.bind(server, "127.0.0.1:0", None)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: Any = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        question = b"\x3a\x00"  # list_services
        answers = [each async for each in ask(iter([question] * 5), timeout=60)]
    await server.stop(0)
    assert len(answers) == 5 and waited == {pace.CHEAP: 1 + 5}


NAMES = {
    "/grpc.health.v1.Health/Watch": 1,
    "/grpc.health.v1.Health/Check": 1,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": 3,
    "/trimtab.v1.EncoderService/ListAdapters": 1,
    "/trimtab.v1.EncoderService/GetEncoder": 1,
    "/inference.GRPCInferenceService/ModelMetadata": 1,
    "/inference.GRPCInferenceService/RepositoryIndex": 1,
    "/inference.GRPCInferenceService/RepositoryModelLoad": 2,
    "/inference.GRPCInferenceService/SystemSharedMemoryRegister": 1,
}


@pytest.mark.parametrize("path", NAMES)
def test_calls_that_need_no_large_message_take_none_and_keep_none(flooded: ServerProcess, path: str) -> None:
    """60 calls with names of 3 MiB, which stay open as long as they may: none is kept."""
    name = bytes((NAMES[path] << 3 | 2,)) + varint(3 << 20) + b"a" * (3 << 20)
    with (
        costing_less_than(100, flooded),
        grpc.insecure_channel(flooded.url, [("grpc.max_send_message_length", -1)]) as channel,
    ):
        call: Any = channel.stream_stream(path)
        for _ in range(60):
            with pytest.raises(grpc.RpcError) as caught:
                next(call(iter([name]), timeout=60))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "bytes" in str(caught.value.details())


def varint(number: int) -> bytes:
    return bytes((number & 127 | 128, number >> 7 & 127 | 128, number >> 14 & 127 | 128, number >> 21))


def test_a_message_is_not_taken_whole_to_find_that_it_is_too_long(
    flooded: ServerProcess,
) -> None:
    """limits.max_received_bytes: gRPC itself would keep up to 4 GiB of one message."""
    program = (
        "import grpc, sys\n"
        "with grpc.insecure_channel(sys.argv[1], [('grpc.max_send_message_length', -1)]) as channel:\n"
        "    channel.unary_unary(sys.argv[2])(bytes(1 << 30), timeout=120)\n"
    )
    with costing_less_than(400, flooded):
        command = [sys.executable, "-c", program, flooded.url, CHECK]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert "RESOURCE_EXHAUSTED" in done.stderr


def test_open_calls_are_bounded_and_whoever_has_most_makes_room(tmp_path: Path) -> None:
    """max_calls: of connections, where callers show no credentials."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    request = health_pb2.HealthCheckRequest()
    with (
        serve(known.bundle().parent.parent, tmp_path, "[limits]\nmax_calls = 4\n") as server,
        grpc.insecure_channel(server.url, options) as many,
        grpc.insecure_channel(server.url, options) as few,
    ):
        stub: Any = health_pb2_grpc.HealthStub(many)
        watches = []
        for _ in range(4):  # one after the other: the last is the one that will go
            watches.append(stub.Watch(request, timeout=100))
            next(watches[-1])
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(request, timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limits.max_calls" in str(caught.value.details())
        other: Any = health_pb2_grpc.HealthStub(few)
        assert other.Check(request, timeout=60).status
        with pytest.raises(grpc.RpcError) as caught:
            next(watches[-1])
        assert "limits.max_calls" in str(caught.value.details())
        assert all(watch.is_active() for watch in watches[:-1])
