"""Several servers behind one client: calls go where there is least to do, and pass by who is gone."""

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import trimtab
from tests.server.server_process import ServerProcess, free_port, serve

TEXTS = "trimtab_texts_total"
WINDOW = 40


@contextmanager
def replica(repository: Path, folder: Path, port: int) -> Iterator[ServerProcess]:
    """A server with one worker."""
    core = min(os.sched_getaffinity(0))
    config = f'devices = ["cpu:{core}"]\n[server]\ngrpc_address = "127.0.0.1:{port}"\n'
    with serve(repository, folder, config) as server:
        yield server


@pytest.fixture(scope="module")
def pair(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServerProcess]]:
    """Two of them."""
    with ExitStack() as stack:
        folders = (tmp_path_factory.mktemp(f"replica-{number}") for number in range(2))
        yield [stack.enter_context(replica(minilm_repository, folder, free_port())) for folder in folders]


def target(pair: list[ServerProcess]) -> str:
    return "ipv4:" + ",".join(server.url for server in pair)


def texts(server: ServerProcess) -> float:
    return sum(value for name, value in server.metrics().items() if name.startswith(TEXTS))


def share_of_second(client: trimtab.Client, pair: list[ServerProcess]) -> float:
    """Of WINDOW calls, which part the second server answers, by its own count."""
    before = texts(pair[1])
    for number in range(WINDOW):
        client.embed([f"text number {number}"])
    return (texts(pair[1]) - before) / WINDOW


@contextmanager
def busy(server: ServerProcess) -> Iterator[None]:
    """A bulk stream of another client, of which the server always has more than it can do."""
    over = threading.Event()

    def read() -> None:
        with trimtab.Client(server.url, timeout=100) as client:
            endless = (f"passage {number} " + "of many words " * 30 for number in itertools.count())
            with client.embed_stream(endless, window=256, priority="bulk") as stream:
                for _ in stream:
                    if over.is_set():
                        return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()


def until(client: trimtab.Client, pair: list[ServerProcess], low: float, high: float) -> float:
    """The share of the second server, once it is within these bounds; the last one seen after 90 seconds."""
    end = time.monotonic() + 90
    while not low <= (share := share_of_second(client, pair)) <= high and time.monotonic() < end:
        pass
    return share


def test_calls_go_where_there_is_less_to_do_and_come_back(pair: list[ServerProcess]) -> None:
    url = target(pair)
    with (
        trimtab.Client(url, timeout=100) as turns,
        trimtab.Client(url, balancing="least_loaded", timeout=100) as client,
    ):
        assert until(turns, pair, 0.45, 0.55) == pytest.approx(0.5, abs=0.05)
        with busy(pair[0]):
            assert until(client, pair, 0.75, 1.0) >= 0.75
        assert until(client, pair, 0.3, 0.7) == pytest.approx(0.5, abs=0.2)


async def test_one_that_is_killed_costs_no_call_and_is_found_again(
    pair: list[ServerProcess], minilm_repository: Path, tmp_path: Path
) -> None:
    killed = pair[0]
    async with trimtab.AsyncClient(target(pair), balancing="least_loaded", timeout=100) as client:

        async def call_until(over: Callable[[], bool]) -> None:
            end = time.monotonic() + 90
            while not over():
                await asyncio.gather(*(client.embed([f"text number {number}"]) for number in range(8)))
                assert time.monotonic() < end

        before = texts(killed)
        await call_until(lambda: texts(killed) > before + 20)
        killed.process.kill()
        after = texts(pair[1]) + 100
        await call_until(lambda: texts(pair[1]) >= after)
        port = int(killed.url.rpartition(":")[2])
        with replica(minilm_repository, tmp_path, port) as again:
            await call_until(lambda: texts(again) > 20)


def test_an_unknown_balancing_is_refused() -> None:
    with pytest.raises(trimtab.ConfigError, match="'random' is not known; choose one of round_robin"):
        trimtab.Client(balancing="random")  # type: ignore[arg-type]
