"""What `embed_stream` does only on an event loop: async texts, cancelled tasks."""

import asyncio
import gc
import itertools
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

import trimtab
from tests.client.fake_server import DIMENSIONS, FakeServer, vector, vectors


@pytest.fixture
async def client(url: str) -> AsyncIterator[trimtab.AsyncClient]:
    async with trimtab.AsyncClient(url, timeout=100) as client:
        yield client


def tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("trimtab")]


async def ended(server: FakeServer) -> str:
    return await asyncio.to_thread(server.ended.get, timeout=60)


async def test_async_texts_leave_at_once(client: trimtab.AsyncClient) -> None:
    answered: asyncio.Queue[int] = asyncio.Queue()

    async def texts() -> AsyncIterator[str]:
        for index in range(5):
            yield f"text {index}"
            assert await answered.get() == index

    index = 0
    async for row in client.embed_stream(texts()):
        assert np.array_equal(row, vector(f"text {index}"))
        await answered.put(index)
        index += 1
    assert index == 5
    assert not tasks()


async def test_async_texts_may_raise(client: trimtab.AsyncClient) -> None:
    async def texts() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(0)
        raise OSError("the disk")

    got = []
    with pytest.raises(OSError, match="the disk"):
        async for row in client.embed_stream(texts()):
            got.append(row)
    assert np.array_equal(got, vectors(["a"]))
    assert not tasks()


async def test_async_texts_are_read_no_further_than_the_window(client: trimtab.AsyncClient) -> None:
    seen = 0

    async def texts() -> AsyncIterator[str]:
        nonlocal seen
        for seen in itertools.count(1):
            yield f"text {seen}"

    async with client.embed_stream(texts(), window=10) as stream:
        for taken in range(1, 30):
            await anext(stream)
            assert seen <= 10 + taken
    assert not tasks()


@pytest.mark.parametrize("how", ["break", "aclose", "with", "cancel"])
async def test_leaving_early_ends_the_call_and_its_tasks(
    client: trimtab.AsyncClient, server: FakeServer, how: str
) -> None:
    stream = client.embed_stream(f"text {index}" for index in itertools.count())
    assert stream.encoder is None
    if how == "break":
        async for _ in stream:
            break
        del stream
        gc.collect()
    elif how == "aclose":
        row = await anext(stream)
        assert row.shape == (DIMENSIONS,)
        await stream.aclose()
        await stream.aclose()
        assert [row async for row in stream] == []
    elif how == "with":
        with pytest.raises(RuntimeError):
            async with stream:
                assert stream.encoder
                await anext(stream)
                raise RuntimeError("of the caller")
    else:
        released = threading.Event()
        server.faults.gate = lambda texts: released.wait(60) and None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(stream)
        released.set()
    assert await ended(server) == "cancelled"
    assert not tasks()
    assert len(await client.embed(["still there"])) == 1


async def test_closing_the_async_client_ends_its_streams(url: str) -> None:
    client = trimtab.AsyncClient(url)

    async def texts() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(60)

    stream = client.embed_stream(texts())
    await anext(stream)
    await client.close()
    with pytest.raises(trimtab.Cancelled):
        await anext(stream)
    assert not tasks()
