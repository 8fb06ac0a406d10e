"""Sessions that fail on purpose, behind the real server: others are answered, each with its own vector."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import msgspec
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

import trimtab
from tests.server.fingerprint import fingerprint
from tests.server.models_made import Ids, TextRunner
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab_server.app import App
from trimtab_server.callers.access import SERVER
from trimtab_server.config import Config, LimitSettings, ServerSettings
from trimtab_server.engine.batch import Model
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place

POISON = 200  # a text of so many tokens
CALLS = 10_000


class FakeSession(TextRunner):
    """Vectors that name their text; raises on a batch that holds a poisoned one."""

    def __init__(self, model: Model, place: Place) -> None:
        self.model = model

    def vectors(self, ids: Sequence[Ids]) -> np.ndarray:
        if any(len(each) == POISON for each in ids):
            raise RuntimeError("poison")
        return np.stack([fingerprint(each) for each in ids])


class NoNumbers(FakeSession):
    def vectors(self, ids: Sequence[Ids]) -> np.ndarray:
        vectors = super().vectors(ids)
        vectors[[len(each) == 7 for each in ids]] = np.nan
        return vectors


class WrongShape(FakeSession):
    def vectors(self, ids: Sequence[Ids]) -> np.ndarray:
        return super().vectors(ids)[:, :5] if len(ids[0]) == 5 else super().vectors(ids)


@asynccontextmanager
async def running(repository: Path, session: type = FakeSession, **limits: int) -> AsyncIterator[App]:
    server = ServerSettings(grpc_address="127.0.0.1:0", metrics_address="127.0.0.1:0", drain_seconds=5.0)
    config = Config(
        server=server, devices=("cpu",), limits=msgspec.structs.replace(LimitSettings(), **limits)
    )
    app = App(config, repository, Opening(session, foreign=False))
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


def stub_of(app: App) -> tuple[grpc.aio.Channel, encoder_pb2_grpc.EncoderServiceStub]:
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}")
    return channel, encoder_pb2_grpc.EncoderServiceStub(channel)


def words(count: int) -> str:
    """A text of `count` tokens, the two special ones included."""
    return " ".join(["a"] * (count - 2))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
async def test_a_session_that_raises_fails_its_batch_and_nothing_else(minilm_repository: Path) -> None:
    async with running(minilm_repository) as app:
        channel, stub = stub_of(app)
        async with channel:
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.Embed(pb.EmbedRequest(texts=[words(POISON)]))
                assert caught.value.code() is grpc.StatusCode.INTERNAL
                assert "RuntimeError" in caught.value.details() and "error " in caught.value.details()
                assert "poison" not in caught.value.details(), "what a library says may hold a text"
                good = await stub.Embed(pb.EmbedRequest(texts=[words(4)]))
                assert good.embeddings[0].vectors.rows == 1


async def test_vectors_that_are_no_numbers_or_of_another_shape(minilm_repository: Path) -> None:
    async with running(minilm_repository, NoNumbers) as app:
        channel, stub = stub_of(app)
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError, match=r"texts\[1\]"):
                await stub.Embed(pb.EmbedRequest(texts=[words(4), words(7)]))
            assert (await stub.Embed(pb.EmbedRequest(texts=[words(4)]))).embeddings[0].vectors.rows == 1
    async with running(minilm_repository, WrongShape) as app:
        channel, stub = stub_of(app)
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Embed(pb.EmbedRequest(texts=[words(5)]))
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert (await stub.Embed(pb.EmbedRequest(texts=[words(4)]))).embeddings[0].vectors.rows == 1


async def test_thousands_of_calls_each_get_their_own_vectors(minilm_repository: Path) -> None:
    """10,000 calls at once on a connection, some cancelled, some poisoned: each answer is its own text's."""
    from trimtab.tokens import Tokenizer

    tokenizer = Tokenizer(minilm_repository / "all-minilm-l6-v2/1/tokenizer.json", 256)
    async with running(minilm_repository, max_tokens_in_flight=1 << 24) as app:
        channel, stub = stub_of(app)
        async with channel:

            async def ask(number: int) -> str:
                texts = [
                    f"call {number} row {row} {'x ' * (number * row % 20)}" for row in range(1 + number % 4)
                ]
                if number % 50 == 0:
                    texts.append(words(POISON))
                call = stub.Embed(pb.EmbedRequest(texts=texts))
                if number % 7 == 0:  # while some call or other is answered, this one is at the server
                    await stub.Embed(pb.EmbedRequest(texts=[f"another of {number}"]))
                    call.cancel()
                try:
                    response = await call
                except asyncio.CancelledError:
                    return "cancelled"
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.INTERNAL
                    return "failed"
                got = np.frombuffer(response.embeddings[0].vectors.data, "<f4").reshape(len(texts), 384)
                expected = [fingerprint(read.ids) for read in tokenizer.read(texts, "end")]
                np.testing.assert_array_equal(got, np.stack(expected))
                return "answered"

            outcomes = await asyncio.gather(*(ask(number) for number in range(CALLS)))
    assert len(outcomes) == CALLS
    assert outcomes.count("failed") and outcomes.count("cancelled")
    poisoned = len(range(0, CALLS, 50))
    assert outcomes.count("failed") <= poisoned, "only the poisoned ones fail, not their neighbours"
    assert outcomes.count("answered") >= CALLS - poisoned - len(range(0, CALLS, 7))


async def test_a_stream_that_is_not_read_stops_itself_alone(minilm_repository: Path) -> None:
    """The server stops reading a stream whose answers are not read; other calls go on."""
    async with running(minilm_repository, max_texts=64, max_stream_texts=64) as app:
        channel, stub = stub_of(app)
        async with channel:
            stream = stub.EmbedStream()
            sent = 0

            async def flood() -> None:
                nonlocal sent
                for number in range(100_000):
                    request = pb.EmbedRequest(texts=["some text of a flood " * 20] * 32)
                    await stream.write(pb.EmbedStreamRequest(id=number, request=request))
                    sent = number + 1

            flooding = asyncio.create_task(flood())
            last = -1
            while sent != last:  # until nothing has moved while 50 other calls were answered
                last = sent
                for _ in range(50):
                    assert (await stub.Embed(pb.EmbedRequest(texts=["another caller"]))).embeddings[
                        0
                    ].vectors.rows == 1
            assert not flooding.done() and 0 < sent < 10_000
            flooding.cancel()
            stream.cancel()
            assert (await stub.Embed(pb.EmbedRequest(texts=["afterwards"]))).embeddings[0].vectors.rows == 1


class Gated(FakeSession):
    """Runs only while its gate is open; warm-up passes."""

    gate = threading.Event()

    def vectors(self, ids: Sequence[Ids]) -> np.ndarray:
        self.gate.wait(30)
        return super().vectors(ids)


async def in_flight(app: App, wanted: int) -> None:
    """Wait until so many requests are at the server."""
    async with asyncio.timeout(120):
        while sum(app.repository.in_flight().values()) < wanted:
            await asyncio.sleep(0)


async def test_draining_answers_all_that_was_taken_up(minilm_repository: Path) -> None:
    """However long that takes, within drain_seconds; on every kind of call."""
    Gated.gate.set()
    async with running(minilm_repository, Gated) as app:
        channel, stub = stub_of(app)
        triton = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        async with channel:
            Gated.gate.clear()
            unary = [
                asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[words(4 + n)]))) for n in range(9)
            ]
            stream, inference = stub.EmbedStream(), triton.ModelStreamInfer()
            for number in range(9):
                request = pb.EmbedRequest(texts=[words(20 + number)])
                await stream.write(pb.EmbedStreamRequest(id=number, request=request))
                infer = service_pb2.ModelInferRequest(model_name="all-minilm-l6-v2", id=str(number))
                infer.inputs.add(name="text", datatype="BYTES", shape=[1])
                infer.inputs[0].contents.bytes_contents.append(words(40 + number).encode())
                await inference.write(infer)
            await in_flight(app, 27)
            stopping = asyncio.create_task(app.stop())
            with pytest.raises(grpc.aio.AioRpcError) as caught:  # the door is closed
                while True:
                    await stub.GetEncoder(pb.GetEncoderRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            Gated.gate.set()
            assert [answer.embeddings[0].vectors.rows for answer in await asyncio.gather(*unary)] == [1] * 9
            ids: list[int] = []
            with pytest.raises(grpc.aio.AioRpcError, match="draining"):
                while True:
                    ids.append((await stream.read()).id)
            assert sorted(ids) == list(range(9))
            numbers: list[str] = []
            with pytest.raises(grpc.aio.AioRpcError, match="draining"):
                while True:
                    numbers.append((await inference.read()).infer_response.id)
            assert numbers == [str(number) for number in range(9)]
            await stopping


async def test_unloading_waits_for_what_was_taken_up(minilm_repository: Path) -> None:
    Gated.gate.set()
    async with running(minilm_repository, Gated) as app:
        channel, stub = stub_of(app)
        async with channel:
            Gated.gate.clear()
            calls = [
                asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[words(4 + n)]))) for n in range(5)
            ]
            await in_flight(app, 5)
            unloading = asyncio.create_task(app.repository.unload(SERVER, "all-minilm-l6-v2"))
            with pytest.raises(trimtab.Unavailable, match="unloading"):
                while True:
                    app.repository.find(SERVER, "all-minilm-l6-v2")
                    await asyncio.sleep(0)
            # A caller of unload that gives up changes nothing: it is the repository's own work.
            unloading.cancel()
            Gated.gate.set()
            assert [answer.embeddings[0].vectors.rows for answer in await asyncio.gather(*calls)] == [1] * 5
            with pytest.raises(trimtab.FailedPrecondition, match="unloaded"):
                async with asyncio.timeout(120):
                    while True:
                        try:
                            app.repository.find(SERVER, "all-minilm-l6-v2")
                        except trimtab.Unavailable:
                            await asyncio.sleep(0)
            await app.repository.load(SERVER, "all-minilm-l6-v2")
            assert (await stub.Embed(pb.EmbedRequest(texts=["again"]))).embeddings[0].vectors.rows == 1


async def test_a_load_that_its_caller_gives_up_is_finished(minilm_repository: Path) -> None:
    Gated.gate.set()
    async with running(minilm_repository, Gated) as app:
        await app.repository.unload(SERVER, "all-minilm-l6-v2")
        Gated.gate.clear()
        loading = asyncio.create_task(app.repository.load(SERVER, "all-minilm-l6-v2"))
        with pytest.raises(trimtab.Unavailable, match="loading"):
            while True:
                with contextlib.suppress(trimtab.FailedPrecondition):
                    app.repository.find(SERVER, "")
                await asyncio.sleep(0)
        loading.cancel()
        Gated.gate.set()
        async with asyncio.timeout(120):
            while not app.repository.encoders(SERVER):
                await asyncio.sleep(0)


async def test_a_stream_of_requests_without_texts_is_bounded_too(minilm_repository: Path) -> None:
    """What is no work can be as much memory: so many answers are under way, however many are asked for."""
    async with running(minilm_repository, max_texts=64, max_stream_texts=64) as app:
        channel, stub = stub_of(app)
        async with channel:
            stream = stub.EmbedStream()
            most = 0

            async def flood() -> None:
                for number in range(2000):
                    request = pb.EmbedRequest(encoder="x" * 1000)
                    await stream.write(pb.EmbedStreamRequest(id=number, request=request))
                await stream.done_writing()

            flooding = asyncio.create_task(flood())
            ids = set()
            while (answer := await stream.read()) is not grpc.aio.EOF:
                ids.add(answer.id)
                most = max(most, len(asyncio.all_tasks()))
            await flooding
            assert ids == set(range(2000))
            assert most < 64 + 30


async def test_a_request_larger_than_any_batch_comes_back_whole(minilm_repository: Path) -> None:
    async with running(minilm_repository) as app:
        async with trimtab.AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
            texts = [f"text {number} {'y ' * (number % 30)}" for number in range(3000)]
            result = await client.embed_detailed(texts, timeout=240)
            assert result.vectors.shape == (3000, 384)
            # The fake vector's first components are the token ids, so each row tells its own text.
            alone = await client.embed([texts[2345]])
            np.testing.assert_array_equal(result.vectors[2345], alone[0])
