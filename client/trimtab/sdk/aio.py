"""The client for programs with an asyncio event loop."""

# ruff: noqa: ASYNC109 (a timeout here is the deadline that travels to the server, as in trimtab.Client)

import asyncio
from collections.abc import AsyncIterable, Awaitable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio

from trimtab import forks
from trimtab.core import requests
from trimtab.core.answers import Adapter, Embeddings, Encoder, Outputs, Ranking, Vectors
from trimtab.core.exchange import DEFAULT_WINDOW
from trimtab.core.options import EmbedOptions, Item, Options
from trimtab.core.rescoring import AsyncTexts, Scores
from trimtab.core.steps import Await, Begin, Fetch, Step, Steps, run_async
from trimtab.errors import FailedPrecondition
from trimtab.kinds import Priority, Truncate
from trimtab.sdk import channel
from trimtab.sdk.aio_stream import AsyncEmbeddingStream
from trimtab.sdk.base import BaseClient
from trimtab.v1.encoder_pb2_grpc import EncoderServiceStub

Result = TypeVar("Result")


class _Home:
    """The event loop and the process of a client: gRPC's objects do not work in any other."""

    def __init__(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise FailedPrecondition(
                "an AsyncClient belongs to a running event loop, and here is none: make it in a coroutine, "
                "or use trimtab.Client"
            ) from None
        self._generation = forks.generation()

    def check(self) -> None:
        """Raise FailedPrecondition in another event loop or process."""
        if forks.generation() != self._generation:
            raise FailedPrecondition(
                "this AsyncClient was made in the parent of this process, whose connections are its own: "
                "make one here"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise FailedPrecondition(
                "this AsyncClient was made in another event loop: make one in each (each asyncio.run has its "
                "own), or use trimtab.Client, which any thread may share"
            )


class AsyncClient(BaseClient):
    """A connection to a Trimtab server, for one event loop: make it in a coroutine.

    Close it, or use it in `async with`. Its parameters, retries and errors are those of `trimtab.Client`.
    """

    def _open(self) -> None:
        self._home = _Home()
        to, credentials = self._target.url, self._credentials
        self._channels = tuple(
            grpc.aio.insecure_channel(to, options)
            if credentials is None
            else grpc.aio.secure_channel(to, credentials, options)
            for options in self._options
        )
        self._calls, self._streams = (EncoderServiceStub(opened) for opened in self._channels)

    async def close(self) -> None:
        self._home.check()
        for opened in self._channels:
            await opened.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def embed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Vectors:
        return (await self.embed_detailed(texts, timeout=timeout, **options)).vectors

    async def embed_detailed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        return await self._run(self._session.embed(texts, Options(**options)), timeout)

    async def embed_spaces(
        self,
        texts: Iterable[str],
        spaces: Iterable[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> dict[str, Embeddings]:
        return await self._run(self._session.embed_spaces(texts, spaces, Options(**options)), timeout)

    async def embed_outputs(
        self,
        texts: Iterable[Item],
        outputs: Iterable[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Outputs:
        return await self._run(self._session.embed_outputs(texts, outputs, Options(**options)), timeout)

    def embed_stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        window: int = DEFAULT_WINDOW,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncEmbeddingStream:
        requests.refuse_single(texts)
        wanted, seconds = Options(**options), self._deadline(timeout).seconds
        return AsyncEmbeddingStream(
            self._home.check,
            lambda: self._run(self._session.stream(wanted, window, seconds), seconds),
            texts,
            lambda messages: self._streams.EmbedStream(messages, metadata=self._sent.get()),
            self._target,
        )

    async def rescore(
        self,
        query: str,
        candidates: Iterable[str],
        *,
        texts: AsyncTexts | None = None,
        encoder: str = "",
        version: str = "",
        truncate: Truncate = "end",
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> Scores:
        options = Options(encoder=encoder, version=version, truncate=truncate, priority=priority)
        return await self._run(self._session.rescore(query, candidates, texts, options), timeout)

    async def rerank(
        self,
        query: str,
        texts: Iterable[str],
        *,
        top_n: int | None = None,
        output: str = "",
        partial: bool = False,
        encoder: str = "",
        version: str = "",
        truncate: Truncate = "end",
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> Ranking:
        options = Options(encoder=encoder, version=version, truncate=truncate, priority=priority)
        return await self._run(self._session.rerank(query, texts, top_n, output, partial, options), timeout)

    async def encoders(self, *, timeout: float | None = None) -> list[Encoder]:
        return await self._run(self._session.encoders(), timeout)

    async def adapters(self, encoder: str = "", *, timeout: float | None = None) -> list[Adapter]:
        return await self._run(self._session.adapters(encoder), timeout)

    async def encoder(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Encoder:
        return await self._run(self._session.encoder(name, version), timeout)

    async def _run(self, steps: Steps[Result], timeout: float | None) -> Result:
        self._home.check()
        deadline = self._deadline(timeout)
        return await run_async(steps, lambda step: self._perform(step, deadline))

    async def _perform(self, step: Step, deadline: channel.Deadline) -> Any:
        if isinstance(step, Fetch):
            found = step.texts(step.ids)
            return await found if isinstance(found, Awaitable) else found
        with channel.translated(self._target, deadline):
            if isinstance(step, Await):
                return await step.call
            method = getattr(self._calls, step.method)
            call = method(step.request, timeout=deadline.left(), metadata=self._sent.get())
            return call if isinstance(step, Begin) else await call
