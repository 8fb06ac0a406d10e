"""The clients that put a server under load: each makes a function that sends one text."""

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

import trimtab
from trimtab.v1 import encoder_pb2 as pb

TIMEOUT = 120.0
Call = Callable[[str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """The server under load."""

    url: str
    encoder: str
    variant: str = ""  # "": the first; of another, only the SDK asks

    @property
    def asked(self) -> trimtab.EmbedOptions:
        """What the SDK asks for."""
        return {"variant": self.variant} if self.variant else {}


@asynccontextmanager
async def sdk(target: LoadTarget) -> AsyncIterator[Call]:
    """trimtab.AsyncClient, one call per text."""
    async with trimtab.AsyncClient(target.url, timeout=TIMEOUT) as client:

        async def call(text: str) -> Any:
            return (await client.embed([text], **target.asked))[0]

        yield call


@asynccontextmanager
async def triton(target: LoadTarget) -> AsyncIterator[Call]:
    """NVIDIA's tritonclient.grpc.aio, one call per text: for our server and for Triton."""
    import tritonclient.grpc.aio as tritonclient

    async with tritonclient.InferenceServerClient(target.url) as client:

        async def call(text: str) -> Any:
            tensor = tritonclient.InferInput("text", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
            result = await client.infer(target.encoder, [tensor], client_timeout=TIMEOUT)
            return result.as_numpy("embeddings")[0]

        yield call


@asynccontextmanager
async def raw(target: LoadTarget) -> AsyncIterator[Call]:
    """Bare gRPC; answers are parsed after the clock has stopped: the least possible work for the client."""
    async with grpc.aio.insecure_channel(target.url) as channel:
        method: Any = channel.unary_unary("/trimtab.v1.EncoderService/Embed")

        async def call(text: str) -> Any:
            return await method(pb.EmbedRequest(texts=[text]).SerializeToString(), timeout=TIMEOUT)

        yield call


@asynccontextmanager
async def http(target: LoadTarget) -> AsyncIterator[Call]:
    """OpenAI's HTTP API with vectors as base64, as Infinity serves it."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def call(text: str) -> Any:
            body = {"model": target.encoder, "input": [text], "encoding_format": "base64"}
            async with session.post(f"{target.url}/embeddings", json=body) as response:
                response.raise_for_status()
                encoded = (await response.json())["data"][0]["embedding"]
            return np.frombuffer(base64.b64decode(encoded), "<f4")

        yield call


UNARY: dict[str, Callable[[LoadTarget], AbstractAsyncContextManager[Call]]] = {
    "sdk": sdk,
    "triton": triton,
    "raw": raw,
    "http": http,
}
KINDS = (*UNARY, "stream")
