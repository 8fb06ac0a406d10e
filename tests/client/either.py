"""A fake server for each test, and one way to call it through either client."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import trimtab
from tests.client.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def url(server: FakeServer) -> str:
    return server.start()


class Sync:
    """Each call opens a Client, and closes it."""

    def call(self, url: str, method: str, *args: Any, tls: Any = False, **options: Any) -> Any:
        with trimtab.Client(url, tls=tls, timeout=100, metadata={"authorization": "Bearer x"}) as client:
            return getattr(client, method)(*args, **options)

    def stream(self, url: str, texts: Any, **options: Any) -> list[Any]:
        with trimtab.Client(url, timeout=100) as client:
            return list(client.embed_stream(texts, **options))


class Async:
    """The same, with an AsyncClient on a loop of its own."""

    def call(self, url: str, method: str, *args: Any, tls: Any = False, **options: Any) -> Any:
        async def run() -> Any:
            metadata = {"authorization": "Bearer x"}
            async with trimtab.AsyncClient(url, tls=tls, timeout=100, metadata=metadata) as client:
                return await getattr(client, method)(*args, **options)

        return asyncio.run(run())

    def stream(self, url: str, texts: Any, **options: Any) -> list[Any]:
        async def run() -> list[Any]:
            async with trimtab.AsyncClient(url, timeout=100) as client:
                return [vector async for vector in client.embed_stream(texts, **options)]

        return asyncio.run(run())


@pytest.fixture(params=[Sync, Async])
def either(request: pytest.FixtureRequest) -> Sync | Async:
    """Both clients, one after the other."""
    client: Sync | Async = request.param()
    return client
