"""The stream of `AsyncClient.embed_stream`: a Carrier whose activities are tasks of one event loop.

Nothing else runs between two awaits, so no lock is needed.
"""

import asyncio
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self

from trimtab import forks
from trimtab.core.answers import Encoder
from trimtab.core.carrier import END, Bell, Carrier, Connect, ReadText, Receive, Wait
from trimtab.core.exchange import GRACE, Exchange, Vector
from trimtab.sdk import channel
from trimtab.sdk.base import BaseStream
from trimtab.sdk.target import Target
from trimtab.v1 import encoder_pb2 as pb


class AsyncCall(Protocol):
    """The part of gRPC's call that the stream uses."""

    def __aiter__(self) -> AsyncIterator[pb.EmbedStreamResponse]: ...
    def cancel(self) -> Any: ...


AsyncOpen = Callable[[AsyncIterator[pb.EmbedStreamRequest]], AsyncCall]


class AsyncEmbeddingStream(BaseStream, AsyncIterator[Vector]):
    """Vectors of one space, in the order of the texts. Each has shape (d,) and belongs to the caller.

    Read it with `async for`. The call ends with `aclose()`, at the end of `async with`, or if the loop is
    left early and the stream dropped. It begins with `async with` or with the first vector requested.
    """

    def __init__(
        self,
        check: Callable[[], None],
        start: Callable[[], Awaitable[Exchange]],
        texts: Iterable[str] | AsyncIterable[str],
        open_call: AsyncOpen,
        target: Target,
    ) -> None:
        self._check, self._start, self._texts = check, start, texts
        self._open, self._target = open_call, target
        self._pump: _Pump | None = None
        self._closed = False

    @property
    def encoder(self) -> Encoder | None:
        """The version that embeds all texts of this stream; None before the stream has begun."""
        return self._exchange.encoder if self._exchange else None

    @property
    def _exchange(self) -> Exchange | None:
        return self._pump.carrier.exchange if self._pump else None

    async def __anext__(self) -> Vector:
        """The next vector, shape (d,). Raises what the iterable of texts raised, or a TrimtabError."""
        self._check()
        if self._closed:
            raise StopAsyncIteration
        try:
            pump = await self._begin()
            vector = await pump.take()
            if vector is None:
                await pump.join()
        except BaseException:
            await self.aclose()
            raise
        if vector is None:
            await self.aclose()
            raise StopAsyncIteration
        return vector

    async def aclose(self) -> None:
        """End the call; texts still in flight are not embedded. Closing again does nothing."""
        self._check()
        self._closed = True
        if self._pump is not None:
            await self._pump.aclose()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _begin(self) -> "_Pump":
        if self._pump is None:
            self._pump = _Pump(await self._start(), self._texts, self._open, self._target)
            # The tasks hold the pump and never this object, so that dropping it ends them.
            weakref.finalize(self, self._pump.close)
        return self._pump


class _Pump:
    def __init__(
        self,
        exchange: Exchange,
        texts: Iterable[str] | AsyncIterable[str],
        open_call: AsyncOpen,
        target: Target,
    ) -> None:
        self._open, self._target, self._texts = open_call, target, _stepper(texts)
        self._answers: AsyncIterator[pb.EmbedStreamResponse]
        self._calling = forks.Calling()
        self._calling.begin()
        self._loop = asyncio.get_running_loop()
        self._bells = {bell: asyncio.Event() for bell in Bell}
        self.carrier = Carrier(exchange, lambda bell: self._bells[bell].set())
        self._vectors = self.carrier.vectors()
        feeder = asyncio.create_task(self._drive(self.carrier.feed()), name="trimtab-stream-feeder")
        conversation = asyncio.create_task(
            self._drive(self.carrier.converse()), name="trimtab-stream-conversation"
        )
        conversation.add_done_callback(lambda task: self._calling.end())
        self._tasks = (feeder, conversation)

    async def take(self) -> Vector | None:
        for step in self._vectors:
            if not isinstance(step, Wait):
                return step
            await self._heard(step)
        return None

    async def join(self) -> None:
        """Let the server end a finished stream: the server would count a cancelled one as a failure."""
        await asyncio.wait(self._tasks, timeout=GRACE)

    def close(self) -> None:
        """End everything without waiting; callable from a finalizer."""
        if not self.carrier.closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    async def aclose(self) -> None:
        """End everything, and wait for it."""
        self._cancel()
        await asyncio.wait(self._tasks)

    def _cancel(self) -> None:
        connection = self.carrier.close()
        for task in self._tasks:
            task.cancel()
        if connection is not None:
            connection.cancel()
        self.carrier.silence()

    async def _drive(self, steps: Generator[Any, Any, None]) -> None:
        """Run an activity to its end, or until it is cancelled."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = await self._perform(step)
                except asyncio.CancelledError:
                    steps.close()
                    raise
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration:
            pass

    async def _perform(self, step: Wait | ReadText | Connect | Receive) -> Any:
        if isinstance(step, Wait):
            return await self._heard(step)
        if isinstance(step, ReadText):
            return await self._texts()
        with channel.translated_break(self._target):
            try:
                if isinstance(step, Connect):
                    call = self._open(self._requests(step.number))
                    self._answers = aiter(call)
                    return call
                return await anext(self._answers, None)
            except asyncio.CancelledError:
                # gRPC reports a closed channel this way, unless this task itself was cancelled.
                if self.carrier.closed:
                    raise
                raise channel.closed_meanwhile() from None

    async def _requests(self, number: int) -> AsyncIterator[pb.EmbedStreamRequest]:
        for step in self.carrier.requests(number):
            if isinstance(step, Wait):
                await self._heard(step)
            else:
                yield step

    async def _heard(self, wait: Wait) -> None:
        """Wait until the bell next rings, or the seconds have passed."""
        bell = self._bells[wait.bell]
        bell.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait.seconds):
                await bell.wait()


def _stepper(texts: Iterable[str] | AsyncIterable[str]) -> Callable[[], Awaitable[Any]]:
    """A function to await for the next text, or END, of either kind of iterable."""
    if isinstance(texts, AsyncIterable):
        texts_ahead = aiter(texts)

        async def awaited() -> Any:
            return await anext(texts_ahead, END)

        return awaited
    iterator = iter(texts)

    async def read() -> Any:
        return next(iterator, END)

    return read
