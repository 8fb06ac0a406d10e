"""What one tenant sends does not become another's trouble, through a real server with API keys."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.ops.credentials import Credentials
from tests.server.server_process import ServerProcess, serve
from tests.texts import distinct
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc

CONFIG = """
[limits]
max_tokens_in_flight = 6000
[tenants.loud]
weight = 1.0
[tenants.metered]
tokens_per_second = 1.0
burst_tokens = 40
[tenants.narrow]
max_tokens_in_flight = 100
"""
Bearer = tuple[tuple[str, str]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Credentials, dict[str, Bearer]]:
    credentials = Credentials(tmp_path_factory.mktemp("keys"))
    names = ("loud", "quiet", "metered", "narrow")
    return credentials, {name: (("authorization", f"Bearer {credentials.key(name)}"),) for name in names}


@pytest.fixture(scope="module")
def server(
    minilm_repository: Path,
    keys: tuple[Credentials, dict[str, Bearer]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServerProcess]:
    config = CONFIG + keys[0].config()
    with serve(minilm_repository, tmp_path_factory.mktemp("tenants"), config) as running:
        yield running


async def test_a_flood_is_refused_and_the_others_are_answered(
    server: ServerProcess, keys: tuple[Credentials, dict[str, Bearer]]
) -> None:
    """While one tenant sends far more than fits, all that another sends is admitted and answered."""
    flooding, codes = True, Counter[str]()
    async with grpc.aio.insecure_channel(server.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)

        async def flood(number: int) -> None:
            texts = distinct(8, 250)  # three such requests are more than the server takes at once
            while flooding:
                try:
                    request = pb.EmbedRequest(texts=[f"{number} {text}" for text in texts])
                    await stub.Embed(request, metadata=keys[1]["loud"])
                except grpc.aio.AioRpcError as error:
                    codes[error.code().name] += 1
                    await asyncio.sleep(0.01)

        floods = [asyncio.create_task(flood(number)) for number in range(12)]
        async with asyncio.timeout(120):
            while not codes:
                await asyncio.sleep(0.001)
        for number in range(5):
            request = pb.EmbedRequest(texts=[f"a query {number} {row}" for row in range(3)])
            answer = await stub.Embed(request, metadata=keys[1]["quiet"], timeout=240)
            assert len(answer.token_counts) == 3
        assert all(not task.done() for task in floods)
        flooding = False
        await asyncio.gather(*floods)
    assert codes.keys() == {"RESOURCE_EXHAUSTED"}
    metrics = server.metrics()
    refused = {name for name in metrics if name.startswith("trimtab_not_admitted_total")}
    assert refused and all('tenant="loud"' in name for name in refused)


async def test_a_tenant_over_its_quota_is_told_which_and_when(
    server: ServerProcess, keys: tuple[Credentials, dict[str, Bearer]]
) -> None:
    async with grpc.aio.insecure_channel(server.url, [("grpc.enable_retries", 0)]) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        answer = await stub.Embed(pb.EmbedRequest(texts=distinct(1, 100)), metadata=keys[1]["metered"])
        assert answer.token_counts[0] > 40
        with pytest.raises(
            grpc.aio.AioRpcError, match="'metered' has used up its 1 tokens a second"
        ) as caught:
            await stub.Embed(pb.EmbedRequest(texts=["one more"]), metadata=keys[1]["metered"])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"]) > 1000
        with pytest.raises(grpc.aio.AioRpcError, match="max_tokens_in_flight of tenant 'narrow'") as caught:
            await stub.Embed(pb.EmbedRequest(texts=distinct(2, 100)), metadata=keys[1]["narrow"])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await stub.Embed(pb.EmbedRequest(texts=["a word"]), metadata=keys[1]["narrow"])
    assert server.metrics()['trimtab_not_admitted_total{reason="rate",tenant="metered"}'] == 1
