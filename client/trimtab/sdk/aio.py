"""The client for programs with an asyncio event loop."""

# ruff: noqa: ASYNC109 (a timeout here is the deadline that travels to the server, as in trimtab.Client)

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc
import grpc.aio
from google.protobuf.message import Message

from trimtab import forks
from trimtab.core import (
    requests,
    responses,
)
from trimtab.core.answers import (
    Adapter,
    Embeddings,
    Encoder,
    Limits,
    Vectors,
)
from trimtab.core.exchange import (
    DEFAULT_WINDOW,
    Exchange,
)
from trimtab.core.options import EmbedOptions, Options
from trimtab.core.rescoring import (
    AsyncTexts,
    Missing,
    Scores,
    look_up,
    rescoring,
)
from trimtab.core.responses import Part
from trimtab.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    TrimtabError,
)
from trimtab.kinds import (
    Priority,
    Truncate,
)
from trimtab.sdk import channel
from trimtab.sdk.aio_stream import AsyncEmbeddingStream
from trimtab.sdk.credentials import CallMetadata
from trimtab.sdk.target import (
    check_target,
    target,
)
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1.encoder_pb2_grpc import EncoderServiceStub

Answer = TypeVar("Answer")


class _Home:
    """The event loop and the process of a client: gRPC's objects are of no use in others."""

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
        """Raise FailedPrecondition elsewhere."""
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
        balancing: channel.Balancing = "round_robin",
    ) -> None:
        self._timeout = channel.Deadline(timeout).seconds
        credentials = channel.check_credentials(tls)
        encrypted = credentials is not None
        self._sent = CallMetadata(metadata, token, url=check_target(url), secure=encrypted)
        self._target = target(url, encrypted=encrypted, credentials=self._sent.secret)
        self._home = _Home()
        self._channels = tuple(
            grpc.aio.insecure_channel(url, options)
            if credentials is None
            else grpc.aio.secure_channel(url, credentials, options)
            for options in (
                channel.call_options(self._target, balancing),
                channel.stream_options(self._target),
            )
        )
        self._stub, self._stream_stub = (EncoderServiceStub(opened) for opened in self._channels)
        self._limits: dict[tuple[str, str], Limits] = {}

    async def close(self) -> None:
        """Close the connection; open streams end."""
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
        """Embed texts: an (n, d) array, one row a text, in their order. See `trimtab.Client.embed`."""
        return (await self.embed_detailed(texts, timeout=timeout, **options)).vectors

    async def embed_detailed(
        self, texts: Iterable[str], *, timeout: float | None = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings:
        """As `embed`, with the vectors' space, version and scale, the token counts, the server's times."""
        wanted = Options(**options)
        answers = await self._embed(texts, wanted, wanted.spaces, timeout)
        return responses.join([answer[0] for answer in answers], wanted.space)

    async def embed_spaces(
        self,
        texts: Iterable[str],
        spaces: Iterable[str],
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> dict[str, Embeddings]:
        """Embed texts in several spaces at once, from one pass through the encoder: the vectors by space.

        For an index that is half re-embedded, for example. The options are those of EmbedOptions, without
        `space`, and hold for every space alike. Raises as `embed` with one of the spaces would.
        """
        wanted = Options(**options)
        checked = requests.check_spaces(spaces, wanted)
        return responses.join_spaces(await self._embed(texts, wanted, checked, timeout), checked)

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
            self._home.check,
            start,
            texts,
            lambda messages: self._stream_stub.EmbedStream(messages, metadata=self._sent.get()),
            lambda error: channel.from_break(error, self._target),
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
        """Score candidates for a query in the encoder's own space: float32 (n,), the more the nearer.

        As `trimtab.Client.rescore`; a function in `texts` may be a coroutine function.
        """
        options = Options(encoder=encoder, version=version, truncate=truncate, priority=priority)
        deadline, key = self._deadline(timeout), (encoder, version)
        given = list(candidates) if not isinstance(candidates, str | bytes) else candidates

        async def attempt(limits: Limits) -> Scores:
            steps = rescoring(query, given, texts, options, limits)
            answer: pb.RescoreResponse | Sequence[str] | None = None
            while True:
                try:
                    step = steps.send(answer) if answer is not None else next(steps)
                except StopIteration as end:
                    scores: Scores = end.value
                    return scores
                if isinstance(step, Missing):
                    answer = await _fetch(texts, step.ids)
                else:
                    answer = await self._call(self._stub.Rescore, step, deadline)

        return await self._within_limits(key, deadline, attempt)

    async def encoders(self, *, timeout: float | None = None) -> list[Encoder]:
        """Every version of every encoder that is ready to serve, by name, the newest version first."""
        deadline = self._deadline(timeout)
        listed = await self._call(self._stub.ListEncoders, pb.ListEncodersRequest(), deadline)
        return [responses.describe(encoder) for encoder in listed.encoders]

    async def adapters(self, encoder: str = "", *, timeout: float | None = None) -> list[Adapter]:
        """The adapters of the server's repository, by encoder and name, or those that map from `encoder`.

        Those that requests cannot use are among them, and say why. Each has the calibrator that brings
        scores of adapted queries onto the old scale, where it has one.
        """
        request, deadline = pb.ListAdaptersRequest(encoder=encoder), self._deadline(timeout)
        listed = await self._call(self._stub.ListAdapters, request, deadline)
        return [responses.describe_adapter(adapter) for adapter in listed.adapters]

    async def encoder(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Encoder:
        """One encoder: its newest version, or the one named. NotFound where it is not served.

        `name` may be left out where the server serves only one.
        """
        return await self._describe(name, version, self._deadline(timeout))

    async def _embed(
        self, texts: Iterable[str], wanted: Options, spaces: tuple[str, ...], timeout: float | None
    ) -> list[list[Part]]:
        """The answers to all texts in order, each with a part for every space (none named: one)."""
        checked, deadline = requests.check_texts(texts), self._deadline(timeout)
        key = (wanted.encoder, wanted.version)

        async def attempt(limits: Limits) -> list[list[Part]]:
            parts = requests.split(checked, wanted, limits, spaces)
            if len(parts) == 1:
                response = await self._call(self._stub.Embed, wanted.request(checked, spaces), deadline)
                return [responses.parse(response, len(checked), len(spaces) or 1)]
            # Pinned to the version that is the newest now, so that all parts are of one space.
            encoder = await self._describe(*key, deadline)
            parts = requests.split(checked, wanted, encoder.limits, spaces)
            pinned = wanted.pinned(encoder)
            return [part async for part in self._embed_parts(parts, pinned, spaces, deadline)]

        return await self._within_limits(key, deadline, attempt)

    async def _within_limits(
        self,
        key: tuple[str, str],
        deadline: channel.Deadline,
        attempt: Callable[[Limits], Awaitable[Answer]],
    ) -> Answer:
        """What `attempt` gives within the server's limits; once more where they were others by now."""
        known = self._limits.get(key)
        try:
            return await attempt(known or (await self._describe(*key, deadline)).limits)
        except (InvalidArgument, ResourceExhausted) as error:
            if known is None or not channel.may_be_limits(error):
                raise
            self._limits.pop(key, None)
            try:
                limits = (await self._describe(*key, deadline)).limits
            except TrimtabError:
                limits = known  # what was wrong says more than that it cannot be looked into
            if limits == known:
                raise
        return await attempt(limits)

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
        self._home.check()
        with forks.Calling(), channel.translated(self._target, deadline):
            return await method(request, timeout=deadline.left(), metadata=self._sent.get())

    async def _embed_parts(
        self,
        parts: Iterable[list[str]],
        pinned: Options,
        spaces: tuple[str, ...],
        deadline: channel.Deadline,
    ) -> AsyncIterator[list[Part]]:
        """The answers to all parts in order, a few of them on their way at a time."""
        calls: deque[tuple[int, grpc.aio.UnaryUnaryCall[pb.EmbedRequest, pb.EmbedResponse]]] = deque()
        unsent = iter(parts)
        calling = forks.Calling()
        calling.begin()
        try:
            while True:
                with channel.translated(self._target, deadline):
                    for part in islice(unsent, channel.PARTS_IN_FLIGHT - len(calls)):
                        call = self._stub.Embed(
                            pinned.request(part, spaces), timeout=deadline.left(), metadata=self._sent.get()
                        )
                        calls.append((len(part), call))
                    if not calls:
                        return
                    count, call = calls[0]
                    response = await call
                calls.popleft()
                yield responses.parse(response, count, len(spaces) or 1)
        except NotFound as error:
            raise responses.unloaded(error, pinned.encoder, pinned.version) from error
        finally:
            calling.end()
            for _, call in calls:
                call.cancel()


async def _fetch(texts: AsyncTexts | None, ids: list[str]) -> Sequence[str]:
    found = look_up(texts, ids) if isinstance(texts, Mapping) else texts(ids) if texts else []
    return await found if isinstance(found, Awaitable) else found
