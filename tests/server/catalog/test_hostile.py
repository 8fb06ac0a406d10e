"""A good encoder and its adapter are served beside everything hostile or broken, as if they were alone."""

import asyncio
import re
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

import trimtab
from tests import hostile
from tests.server import hostile_world as world
from tests.server.server_process import ServerProcess, serve

LOAD_SECONDS = 8.0
HANG_SECONDS = 3.0
DRAIN_SECONDS = 3.0
TEXTS = ["w1", "w2 w3", "w4 w5 w6 w7 w8", " ".join(hostile.WORDS[:40])]


@pytest.fixture(scope="module", params=["thread", "process"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("hostile")
    repository = folder / "models"
    repository.mkdir()
    world.make(repository)
    config = (
        f"[server]\ndrain_seconds = {DRAIN_SECONDS}\n[engine]\nload_seconds = {LOAD_SECONDS}\n"
        f'hang_seconds = {HANG_SECONDS}\ncosts = ""\nisolation = "{request.param}"\n'
    )
    with serve(repository, folder, config) as server:
        yield server


async def ask(client: trimtab.AsyncClient, stop: asyncio.Event) -> int:
    """Ask the good encoder, and through its adapter, until it is told to stop; each answer must be right."""
    answered = 0
    expected = hostile.vectors(TEXTS)
    while not stop.is_set():
        for space in ("", world.TARGET):
            got = await client.embed(TEXTS, encoder=world.GOOD, space=space)
            np.testing.assert_allclose(got, expected, atol=1e-5)
            answered += 1
    return answered


async def test_each_bad_one_is_named_and_the_good_one_answers(server: ServerProcess) -> None:
    """In the index, in the health, in the log, and in the answer to a load; under load."""
    async with (
        trimtab.AsyncClient(server.url, timeout=100) as client,
        tritonclient.grpc.aio.InferenceServerClient(server.url) as triton,
        grpc.aio.insecure_channel(server.url) as channel,
    ):
        stop = asyncio.Event()
        callers = [asyncio.create_task(ask(client, stop)) for _ in range(4)]
        index = {each.name: each for each in (await triton.get_model_repository_index()).models}
        health = health_pb2_grpc.HealthStub(channel)

        async def load(name: str) -> str:
            with pytest.raises(InferenceServerException) as caught:
                await triton.load_model(name)
            return str(caught.value)

        names = [*world.ENCODERS, world.GOOD]
        answers = dict(zip(names, await asyncio.gather(*map(load, names)), strict=True))
        stop.set()
        assert min(await asyncio.gather(*callers)) > 0
        log = "".join(server.log)
        assert "Traceback" not in log
        wrong: list[str] = []
        for name, (_, words) in world.ENCODERS.items():
            if index[name].state != "UNAVAILABLE" or not re.search(words, index[name].reason):
                wrong.append(f"index: {name} is {index[name].state}: {index[name].reason}")
            if not re.search(words, answers[name]):
                wrong.append(f"load: {name}: {answers[name]}")
            if not re.search(f"/{name}/1.*({words})", log):
                wrong.append(f"log: {name}")
            status = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert index[world.GOOD].state == "READY"
        listed = {each.name: each.problem for each in await client.adapters(world.GOOD)}
        assert [listed[name] for name in ("turning", *world.LATE)] == [""] * 3
        for name, (_, _, words) in world.ADAPTERS.items():
            if not re.search(words, listed.get(name, "")):
                wrong.append(f"adapters: {name}: {listed.get(name)}")
            if f"adapter {name}" not in answers[world.GOOD]:
                wrong.append(f"load: adapter {name}")
            if not re.search(f"adapters/{name}.*({words})", log):
                wrong.append(f"log: adapter {name}")
        assert not wrong, "\n".join(wrong)


async def test_an_adapter_that_hangs_at_a_vector_is_retired_alone(server: ServerProcess) -> None:
    """Until it is loaded again. The event loop, and the other adapters, go on meanwhile."""
    async with (
        trimtab.AsyncClient(server.url, timeout=100) as client,
        tritonclient.grpc.aio.InferenceServerClient(server.url) as triton,
    ):
        stop = asyncio.Event()
        callers = [asyncio.create_task(ask(client, stop)) for _ in range(4)]
        _, looping = world.LATE["late-looping"]
        _, raising = world.LATE["late-raising"]
        for texts in ([world.SETS_OFF], TEXTS):
            with pytest.raises(trimtab.FailedPrecondition, match=r"late-looping.* made no progress for 3 s"):
                await client.embed(texts, encoder=world.GOOD, space=looping)
        with pytest.raises(InferenceServerException, match="but not adapter"):  # of the others
            await triton.load_model(world.GOOD)
        got = await client.embed(TEXTS, encoder=world.GOOD, space=looping)
        np.testing.assert_allclose(got, hostile.vectors(TEXTS), atol=1e-5)
        outcomes = await asyncio.gather(
            client.embed([world.SETS_OFF], encoder=world.GOOD, space=raising),
            *(client.embed(TEXTS, encoder=world.GOOD, space=raising) for _ in range(8)),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], trimtab.InternalError)
        for got in outcomes[1:]:
            np.testing.assert_allclose(got, hostile.vectors(TEXTS), atol=1e-5)
        stop.set()
        assert min(await asyncio.gather(*callers)) > 0


async def test_an_encoder_that_hangs_at_some_texts_is_retired_alone(server: ServerProcess) -> None:
    """After three of them, while another one's texts are answered all the time, if later."""
    async with (
        trimtab.AsyncClient(server.url, timeout=100) as client,
        tritonclient.grpc.aio.InferenceServerClient(server.url) as triton,
    ):
        stop = asyncio.Event()
        callers = [asyncio.create_task(ask(client, stop)) for _ in range(4)]
        got = await client.embed(["w1"], encoder=world.LATE_ENCODER)
        np.testing.assert_allclose(got, hostile.vectors(["w1"]), atol=1e-5)
        for number in range(3):
            text = " ".join(hostile.WORDS[number : number + world.LATE_WORDS])
            with pytest.raises(trimtab.InternalError, match="the texts were given up"):
                await client.embed([text], encoder=world.LATE_ENCODER)
        async with asyncio.timeout(60):
            while (await triton.is_model_ready(world.LATE_ENCODER)) is True:
                await asyncio.sleep(0.05)
        with pytest.raises((trimtab.FailedPrecondition, trimtab.Unavailable), match="3 times in a row"):
            await client.embed(["w1"], encoder=world.LATE_ENCODER, timeout=5)
        await triton.load_model(world.LATE_ENCODER)
        got = await client.embed(["w1"], encoder=world.LATE_ENCODER)
        np.testing.assert_allclose(got, hostile.vectors(["w1"]), atol=1e-5)
        stop.set()
        assert min(await asyncio.gather(*callers)) > 0


def test_the_server_ends_in_time_while_something_hangs(server: ServerProcess) -> None:
    """The last test of each server."""

    async def load() -> None:
        async with tritonclient.grpc.aio.InferenceServerClient(server.url) as triton:
            tasks = [asyncio.create_task(triton.load_model(name)) for name in ("looping", "manifest-fifo")]
            await asyncio.wait(tasks, timeout=0.5)
            begun = time.monotonic()
            assert await asyncio.to_thread(server.stop) == 0
            # A machine with other work to do is slow, and not by as much as one waits for what hangs.
            assert time.monotonic() - begun < DRAIN_SECONDS + 20
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(load())
