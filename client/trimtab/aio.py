"""The client for programs with an asyncio event loop."""

# ruff: noqa: ASYNC109 (a timeout here is the deadline that travels to the server, as in trimtab.Client)

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
import grpc.aio
from google.protobuf.message import Message

from trimtab import channel, requests, responses
from trimtab.aio_stream import AsyncEmbeddingStream
from trimtab.credentials import CallMetadata
from trimtab.errors import InvalidArgument, NotFound
from trimtab.exchange import DEFAULT_WINDOW, Exchange
from trimtab.requests import Options
from trimtab.responses import Part
from trimtab.types import Embeddings, EmbedOptions, Encoder, Limits, Vectors
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1.encoder_pb2_grpc import EncoderServiceStub

Answer = TypeVar("Answer")


class AsyncClient:
    """A connection to a Trimtab server, for one event loop: make it in a coroutine.

    Close it, or use it in `async with`. The parameters, retries and errors are those of `trimtab.Client`.
    """

    def __init__(
        self,
        url: str = channel.DEFAULT_URL,
        *,
        tls: channel.Tls = False,
        timeout: float = channel.DEFAULT_TIMEOUT,
        metadata: Mapping[str, str] | None = None,
        token: str | Path | None = None,
    ) -> None:
        asyncio.get_running_loop()  # gRPC would take another loop than the one that runs later
        self._url = channel.check_target(url)
        self._timeout = channel.Deadline(timeout).seconds
        credentials = channel.check_credentials(tls)
        self._sent = CallMetadata(metadata, token, url=url, secure=credentials is not None)
        self._channels = tuple(
            grpc.aio.insecure_channel(url, options)
            if credentials is None
            else grpc.aio.secure_channel(url, credentials, options)
            for options in (channel.OPTIONS, channel.STREAM_OPTIONS)
        )
        self._stub, self._stream_stub = (EncoderServiceStub(opened) for opened in self._channels)
        self._limits: dict[tuple[str, str], Limits] = {}

    async def close(self) -> None:
        """Close the connection; open streams end."""
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
        """Embed texts: an (n, d) array, one row a text, in their order. See `trimtab.Client.embed`."""
        return (await self.embed_detailed(texts, timeout=timeout, **options)).vectors

    async def embed_detailed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        """As `embed`, with the vectors' space, version and scale, the token counts, the server's times."""
        wanted, checked = Options(**options), requests.check_texts(texts)
        deadline = self._deadline(timeout)
        key = (wanted.encoder, wanted.version)
        limits = self._limits.get(key) or (await self._describe(*key, deadline)).limits
        parts = requests.split(checked, wanted, limits)
        if len(parts) == 1:
            try:
                response = await self._call(self._stub.Embed, wanted.request(checked), deadline)
            except InvalidArgument:
                self._limits.pop(key, None)  # in case the server's limits are others by now
                raise
            return responses.join([responses.parse(response, len(checked))])
        # Pinned to the version that is the newest now, so that all parts are of one space.
        encoder = await self._describe(*key, deadline)
        parts = requests.split(checked, wanted, encoder.limits)
        answers = self._embed_parts(parts, wanted.pinned(encoder), deadline)
        return responses.join([part async for part in answers])

    def embed_stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        window: int = DEFAULT_WINDOW,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> AsyncEmbeddingStream:
        """Embed any number of texts: an async iterator of (d,) vectors, in the texts' order.

        As `trimtab.Client.embed_stream`, but it begins with the first vector that is asked for, or with
        `async with`. `texts` may be an async iterable; an ordinary one is read on the event loop, so it must
        not block.
        """
        requests.refuse_single(texts)
        wanted, seconds = Options(**options), self._deadline(timeout).seconds

        async def start() -> Exchange:
            deadline = channel.Deadline(seconds)
            encoder = await self._describe(wanted.encoder, wanted.version, deadline)
            return Exchange(wanted, encoder, window, seconds)

        return AsyncEmbeddingStream(
            start,
            texts,
            lambda messages: self._stream_stub.EmbedStream(messages, metadata=self._sent.get()),
            lambda error: channel.from_break(error, self._url),
        )

    async def encoders(self, *, timeout: float | None = None) -> list[Encoder]:
        """Every version of every encoder that is ready to serve, by name, the newest version first."""
        deadline = self._deadline(timeout)
        listed = await self._call(self._stub.ListEncoders, pb.ListEncodersRequest(), deadline)
        return [responses.describe(encoder) for encoder in listed.encoders]

    async def encoder(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Encoder:
        """One encoder: its newest version, or the one named. NotFound where it is not served.

        `name` may be left out where the server serves only one.
        """
        return await self._describe(name, version, self._deadline(timeout))

    def _deadline(self, timeout: float | None) -> channel.Deadline:
        return channel.Deadline(self._timeout if timeout is None else timeout)

    async def _describe(self, name: str, version: str, deadline: channel.Deadline) -> Encoder:
        request = pb.GetEncoderRequest(encoder=name, version=version)
        encoder = responses.describe(await self._call(self._stub.GetEncoder, request, deadline))
        self._limits[name, version] = encoder.limits
        return encoder

    async def _call(
        self,
        method: Callable[..., Awaitable[Answer]],
        request: Message,
        deadline: channel.Deadline,
    ) -> Answer:
        with channel.translated(self._url, deadline):
            return await method(request, timeout=deadline.left(), metadata=self._sent.get())

    async def _embed_parts(
        self, parts: Iterable[list[str]], pinned: Options, deadline: channel.Deadline
    ) -> AsyncIterator[Part]:
        """The answers to all parts in order, a few of them on their way at a time."""
        calls: deque[tuple[int, grpc.aio.UnaryUnaryCall[pb.EmbedRequest, pb.EmbedResponse]]] = deque()
        unsent = iter(parts)
        try:
            while True:
                with channel.translated(self._url, deadline):
                    for part in islice(unsent, channel.PARTS_IN_FLIGHT - len(calls)):
                        call = self._stub.Embed(
                            pinned.request(part), timeout=deadline.left(), metadata=self._sent.get()
                        )
                        calls.append((len(part), call))
                    if not calls:
                        return
                    count, call = calls[0]
                    response = await call
                calls.popleft()
                yield responses.parse(response, count)
        except NotFound as error:
            raise responses.unloaded(error, pinned.encoder, pinned.version) from error
        finally:
            for _, call in calls:
                call.cancel()
