"""Devices in processes of their own, which are killed, stopped, crash, hang, leak: nothing else is harmed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import trimtab
from tests.server import faulty_child
from tests.server.engine.test_devices import code
from tests.server.fronts.grpc.test_lifecycle import copy_bundle
from tests.server.misbehaving import PATIENCE, Client, Rig, running
from tests.server.server_process import NAME, ServerProcess, serve
from tests.texts import TEXTS
from trimtab_server.callers.access import SERVER
from trimtab_server.config import EngineSettings

ENGINE = EngineSettings(isolation="process", hang_seconds=1.0)
RESTARTS = 'trimtab_device_restarts_total{device="cpu"}'


def words(tokens: int) -> str:
    """A text of so many tokens, the two special ones included."""
    return " ".join(["a"] * (tokens - 2))


def child_of(pid: int) -> int:
    """The device's process of a server, where it runs; 0 where there is none."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            arguments = stat.with_name("cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        # What is loaded is rehearsed in others.
        if int(parent) == pid and state != "Z" and any(each.startswith(b"device ") for each in arguments):
            return int(stat.parent.name)
    return 0


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process runs, or is stopped: a zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- the real server, the real runtime -------------------------------------------------------------------


@pytest.fixture(scope="module")
def isolated(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = '[engine]\nisolation = "process"\nhang_seconds = 3.0\n'
    with serve(minilm_repository, tmp_path_factory.mktemp("isolated"), config) as server:
        yield server


async def load(server: ServerProcess, trouble: Callable[[int], None], times: int) -> None:
    """Requests in flight while `trouble` befalls the device's process; each answer must be its own text's."""
    health: list[int] = []
    async with (
        trimtab.AsyncClient(server.url, timeout=100) as client,
        grpc.aio.insecure_channel(server.url) as channel,
    ):
        expected = await client.embed(TEXTS)
        assert np.abs(expected @ expected.T - np.eye(len(TEXTS))).max() > 1e-3, "texts can be told apart"

        async def watch() -> None:
            request = health_pb2.HealthCheckRequest(service=NAME)
            async for response in health_pb2_grpc.HealthStub(channel).Watch(request):
                health.append(response.status)

        watching = asyncio.create_task(watch())
        answered, done = 0, False

        async def ask(number: int) -> None:
            nonlocal answered
            while not done:
                rows = [(number + answered * 7 + row) % len(TEXTS) for row in range(1 + number % 3)]
                vectors = await client.embed([TEXTS[row] for row in rows])
                np.testing.assert_allclose(vectors, expected[rows], atol=1e-5)
                answered += 1

        callers = [asyncio.create_task(ask(number)) for number in range(8)]
        for _ in range(times):
            child, before = child_of(server.process.pid), answered
            trouble(child)
            async with asyncio.timeout(PATIENCE):
                while answered < before + 20 or child_of(server.process.pid) in (0, child):
                    await asyncio.sleep(0.01)
        done = True
        await asyncio.gather(*callers)
        watching.cancel()
    assert health == [health_pb2.HealthCheckResponse.SERVING], "it is restored in less than a moment"


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 3), (signal.SIGSEGV, 1), (signal.SIGSTOP, 1)])
def test_no_request_is_lost_whatever_befalls_the_process(
    isolated: ServerProcess, number: signal.Signals, times: int
) -> None:
    before = isolated.metrics().get(RESTARTS, 0.0)
    asyncio.run(load(isolated, lambda child: os.kill(child, number), times))
    metrics = isolated.metrics()
    assert metrics[RESTARTS] - before == times
    assert not any(value for name, value in metrics.items() if name.startswith("trimtab_failures_total"))
    ended = "SIGKILL" if number is signal.SIGSTOP else number.name  # the watchdog has ended what was stopped
    wait_until(lambda: any(f"was ended by {ended}" in line for line in isolated.log))


def test_the_process_holds_the_runtime_and_no_grpc(isolated: ServerProcess) -> None:
    maps = Path(f"/proc/{child_of(isolated.process.pid)}/maps").read_text()
    assert "onnxruntime" in maps and "grpc" not in maps
    assert "onnxruntime" in Path(f"/proc/{isolated.process.pid}/maps").read_text(), "adapters run in it"


@pytest.mark.parametrize("stopped", [False, True])
def test_the_process_ends_with_its_server(stopped: bool) -> None:
    """Even where the server is killed, and where the process is stopped and could not notice."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from trimtab.inputs.text import TextInput\n"
        "from trimtab_server.engine.batch import Model\n"
        "from trimtab_server.engine.fleet.homes import InProcess\n"
        "from trimtab_server.engine.fleet.places import Place\n"
        "from trimtab_server.engine.runners.process import RemoteError\n"
        "home = InProcess(Place('cpu', 0, 1))\n"
        "home.start(lambda: None)\n"
        "try:\n"
        "    home.open(Model('a', 1, 'fp32', Path('/nowhere'), (), TextInput(), (), 512))\n"
        "except RemoteError as error:\n"  # so it runs, and has answered
        "    print(type(error).__name__, flush=True)\n"
        "sys.stdin.read()\n"
    )
    server = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with server:
        assert server.stdout is not None and server.stdout.readline() == b"RemoteError\n"
        child = child_of(server.pid)
        assert child
        if stopped:
            os.kill(child, signal.SIGSTOP)
        server.kill()
        server.wait()
        wait_until(lambda: not alive(child))


# -- sessions that do as a text tells them -----------------------------------------------------------------


@asynccontextmanager
async def faulty(
    repository: Path, *places: str, workers: int = 1, engine: EngineSettings = ENGINE
) -> AsyncIterator[tuple[Rig, Client]]:
    """A server on these places, each in a process that its texts can harm."""
    async with running(
        repository, *places, workers=workers, engine=engine, program=faulty_child.PROGRAM
    ) as running_:
        yield running_


@pytest.mark.parametrize("places", [("one",), ("one", "two")])
async def test_a_text_that_crashes_the_process_fails_alone(
    minilm_repository: Path, places: tuple[str, ...]
) -> None:
    """Its neighbours in the batch, and what runs beside it on the same device, have their vectors."""
    async with faulty(minilm_repository, *places, workers=2) as (rig, client):
        good = [client.embed(f"text {number}", f"another {number}") for number in range(20)]
        bad = client.embed("neighbour", words(faulty_child.CRASHES))
        good += [client.embed(f"later {number}") for number in range(20)]
        await asyncio.wait([bad, *good])
        assert {code(call) for call in good} == {None}
        assert code(bad) is grpc.StatusCode.INTERNAL and "texts[1]" in str(bad.exception())
        assert await client.serving()
        for each in places:
            await rig.until_up(f"{each}:0", True)
        restarts = sum(rig.metric("trimtab_device_restarts_total", device=f"{each}:0") for each in places)
        # Its batch as it came, whole and alone, and by halves: of at most 42 texts.
        assert 2 <= restarts <= 2 + 6
        await client.embed("and afterwards")


async def test_a_text_that_raises_ends_no_process(minilm_repository: Path) -> None:
    async with faulty(minilm_repository, "one") as (rig, client):
        bad, good = client.embed(words(faulty_child.RAISES)), client.embed("a good one")
        await asyncio.wait([bad, good])
        assert code(bad) is grpc.StatusCode.INTERNAL and code(good) is None
        assert rig.metric("trimtab_device_restarts_total", device="one:0") == 0


async def test_a_run_that_hangs_ends_with_its_process(minilm_repository: Path) -> None:
    async with faulty(minilm_repository, "one", workers=2) as (rig, client):
        bad = client.embed(words(faulty_child.HANGS))
        await asyncio.wait([bad])
        good = [client.embed(f"text {number}") for number in range(20)]
        await asyncio.wait(good)
        assert code(bad) is grpc.StatusCode.INTERNAL and "one by one" in str(bad.exception())
        assert {code(call) for call in good} == {None}
        assert rig.metric("trimtab_device_restarts_total", device="one:0") == 2
        assert rig.metric("trimtab_device_failures_total", device="one:0", reason="hung") == 2


async def test_a_process_that_holds_too_much_is_replaced_between_runs(minilm_repository: Path) -> None:
    engine = EngineSettings(isolation="process", hang_seconds=3.0, max_resident_bytes=faulty_child.LEAK_BYTES)
    async with faulty(minilm_repository, "one", workers=2, engine=engine) as (rig, client):
        await client.embed(words(faulty_child.LEAKS))
        while not rig.metric("trimtab_device_restarts_total", device="one:0"):
            await asyncio.gather(*(client.embed(f"text {number}") for number in range(10)))
        await rig.until_up("one:0", True)
        assert rig.metric("trimtab_device_failures_total", device="one:0", reason="memory") == 1
        await client.embed("and afterwards")
        assert rig.metric("trimtab_device_restarts_total", device="one:0") == 1


async def test_a_session_that_a_process_left_behind_is_opened_anew(minilm_repository: Path) -> None:
    """As where a model was loaded just before its process ended, and noted just after the next one began."""
    async with faulty(minilm_repository, "one") as (rig, client):
        assert rig.app is not None
        (device,) = rig.app._engine.queue._workers._devices
        (before,) = device._runners.items()
        device.home.end()
        await rig.until(lambda: rig.metric("trimtab_device_restarts_total", device="one:0") == 1)
        await rig.until_up("one:0", True)
        device._runners.update([before])
        await asyncio.gather(client.embed("one", "two"), client.embed("three"))


async def test_an_encoder_that_ends_whoever_loads_it_is_refused_alone(
    minilm_repository: Path, tmp_path: Path
) -> None:
    copy_bundle(minilm_repository, tmp_path)
    async with faulty(tmp_path, "one", workers=2) as (rig, client):
        copy_bundle(minilm_repository, tmp_path, faulty_child.DEADLY)
        assert rig.app is not None
        calls = [client.embed(f"text {number}") for number in range(20)]
        await asyncio.gather(*calls)
        await rig.app.repository.load(SERVER, faulty_child.DEADLY)
        await asyncio.gather(*(client.embed(f"text {number}") for number in range(20)))
        (entry,) = [each for each in rig.app.repository.index(SERVER) if each.name == faulty_child.DEADLY]
        assert entry.state == "UNAVAILABLE" and "ended 3 times while it loaded" in entry.reason
