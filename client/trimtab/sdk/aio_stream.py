"""The stream of `AsyncClient.embed_stream`: two tasks and gRPC's writer around an Exchange.

It is built like trimtab.sdk.stream, with tasks of one event loop in place of threads; between two awaits
nothing else runs, so there is no lock.
"""

import asyncio
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self

import grpc

from trimtab import forks
from trimtab.core.answers import Encoder
from trimtab.core.exchange import (
    GRACE,
    Exchange,
    Vector,
)
from trimtab.errors import Cancelled, TrimtabError
from trimtab.v1 import encoder_pb2 as pb


class AsyncCall(Protocol):
    """What the stream needs of gRPC's call."""

    def __aiter__(self) -> AsyncIterator[pb.EmbedStreamResponse]: ...
    def cancel(self) -> Any: ...


AsyncOpen = Callable[[AsyncIterator[pb.EmbedStreamRequest]], AsyncCall]


class AsyncEmbeddingStream(AsyncIterator[Vector]):
    """Vectors of one space, in the order of the texts: each of shape (d,), the caller's own.

    `async for` reads it; leaving the loop early and dropping the stream, `aclose()` or `async with` ends the
    call. It begins with `async with`, or with the first vector that is asked for.
    """

    def __init__(
        self,
        check: Callable[[], None],
        start: Callable[[], Awaitable[Exchange]],
        texts: Iterable[str] | AsyncIterable[str],
        open_call: AsyncOpen,
        translate: Callable[[grpc.RpcError], TrimtabError],
    ) -> None:
        self._check, self._start, self._texts = check, start, texts
        self._open, self._translate = open_call, translate
        self._pump: _Pump | None = None
        self._closed = False

    @property
    def encoder(self) -> Encoder | None:
        """The version that embeds all texts of this stream; None before it has begun."""
        return self._pump.exchange.encoder if self._pump else None

    @property
    def scale(self) -> float:
        """What one step of int8 is worth; 0 for other dtypes, and before the first vector."""
        return self._pump.exchange.scale if self._pump else 0.0

    @property
    def adapters(self) -> tuple[str, ...]:
        """ENCODER/NAME of the adapters that the last answer's vectors passed through, in order."""
        return self._pump.exchange.adapters if self._pump else ()

    @property
    def variant(self) -> str:
        """The variant of the encoder that computed the last answer's vectors; "" before the first."""
        return self._pump.exchange.variant if self._pump else ""

    @property
    def browned_out(self) -> bool:
        """Whether a cheaper variant stood in for the encoder in any answer until now."""
        return self._pump is not None and self._pump.exchange.browned_out

    @property
    def suspicious(self) -> bool | None:
        """Whether the last vector's passage comes near to far too many queries (see `Embeddings`).

        None where the server did not look at it.
        """
        return self._pump.exchange.suspicious if self._pump else None

    async def __anext__(self) -> Vector:
        """The next vector, shape (d,). Raises what the texts' iterable raised, or a TrimtabError."""
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
        """End the call; texts on their way are not embedded any more. Closing again does nothing."""
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
            self._pump = _Pump(await self._start(), self._texts, self._open, self._translate)
            # The tasks hold the pump and never this object, so that dropping it ends them.
            weakref.finalize(self, self._pump.close)
        return self._pump


class _Pump:
    def __init__(
        self,
        exchange: Exchange,
        texts: Iterable[str] | AsyncIterable[str],
        open_call: AsyncOpen,
        translate: Callable[[grpc.RpcError], TrimtabError],
    ) -> None:
        self.exchange = exchange
        self._open, self._translate = open_call, translate
        # One bell for each that may wait for a change.
        self._room, self._sendable, self._ready = (asyncio.Event() for _ in range(3))
        self._closed = False
        self._call: AsyncCall | None = None
        self._connection = 0
        self._calling = forks.Calling()
        self._loop = asyncio.get_running_loop()
        self._tasks = (
            asyncio.create_task(self._feed(texts), name="trimtab-stream-feeder"),
            asyncio.create_task(self._converse(), name="trimtab-stream-conversation"),
        )

    async def take(self) -> Vector | None:
        while not self._closed:
            now = time.monotonic()
            vector = self.exchange.take(now)
            if vector is not None:
                self._room.set()
                return vector
            if self.exchange.finished:
                return None
            await _heard(self._ready, self.exchange.patience(now))
        return None

    async def join(self) -> None:
        """Let the server end a stream that is through: cancelled, it would count there as a failure."""
        await asyncio.wait(self._tasks, timeout=GRACE)

    def close(self) -> None:
        """End everything, without waiting for the end; callable from a finalizer."""
        if not self._closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    async def aclose(self) -> None:
        """End everything, and wait for it."""
        self._cancel()
        await asyncio.wait(self._tasks)

    def _cancel(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._call is not None:
            self._call.cancel()
        self._ring()

    def _ring(self) -> None:
        for bell in (self._room, self._sendable, self._ready):
            bell.set()

    async def _feed(self, texts: Iterable[str] | AsyncIterable[str]) -> None:
        error: BaseException | None = None
        try:
            step = _stepper(texts)
            while await self._wait_for_room():
                self.exchange.add(await step(), time.monotonic())
                self._sendable.set()
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException as caught:  # the caller's iterable may raise anything, and gets it back
            error = caught
        self.exchange.end(error)
        self._ring()

    async def _wait_for_room(self) -> bool:
        while not self._closed and self.exchange.room == 0:
            await _heard(self._room, None)
        return not self._closed

    async def _converse(self) -> None:
        with self._calling:
            try:
                delay: float | None = 0.0
                while delay is not None and not self._closed:
                    await asyncio.sleep(delay)
                    delay = await self._connect()
            except Exception as error:  # whatever it was, nobody shall wait for this task for ever
                self.exchange.fail(error)
                self._ring()

    async def _connect(self) -> float | None:
        """Carry the exchange over one connection. Returns the seconds until the next one, None for none."""
        error: TrimtabError | None = None
        try:
            self._call = self._open(self._requests(self._connection))
            async for answer in self._call:
                self.exchange.receive(answer, time.monotonic())
                self._ready.set()
                self._sendable.set()
        except grpc.RpcError as caught:
            error = self._translate(caught)
        except TrimtabError as caught:  # the token's file cannot be read
            error = caught
        except (grpc.aio.UsageError, asyncio.CancelledError):
            # gRPC's words for a channel that was closed, unless this task itself was cancelled.
            if self._closed:
                raise
            error = Cancelled("the client was closed while the stream was open")
        self._connection += 1
        delay = None if self._closed else self.exchange.broke(error)
        self._ring()
        return delay

    async def _requests(self, connection: int) -> AsyncIterator[pb.EmbedStreamRequest]:
        # Until a later connection takes over, or there is nothing left to say.
        while not self._closed and connection == self._connection and not self.exchange.complete:
            now = time.monotonic()
            request = self.exchange.send(now)
            if request is None:
                await _heard(self._sendable, self.exchange.pause(now))
            else:
                yield request


async def _heard(bell: asyncio.Event, seconds: float | None) -> None:
    """Wait until the bell rings from now on, or the seconds are over."""
    bell.clear()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await bell.wait()


def _stepper(texts: Iterable[str] | AsyncIterable[str]) -> Callable[[], Awaitable[str]]:
    """What awaits the next text, of either kind of iterable."""
    if isinstance(texts, AsyncIterable):
        return aiter(texts).__anext__
    iterator = iter(texts)

    async def step() -> str:
        try:
            return next(iterator)
        except StopIteration:
            raise StopAsyncIteration from None

    return step
