"""The stream of `Client.embed_stream`: three threads and one lock around an Exchange.

    the feeder       reads the caller's texts, no further than the window
    the conversation reads answers, and opens the next connection when one breaks
    gRPC's writer    takes each message from the Exchange when the connection can carry it

The caller's own thread only waits for the next vector.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
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
from trimtab.errors import Cancelled, FailedPrecondition, TrimtabError
from trimtab.v1 import encoder_pb2 as pb


class Call(Protocol):
    """What the stream needs of gRPC's call."""

    def __iter__(self) -> Iterator[pb.EmbedStreamResponse]: ...
    def cancel(self) -> Any: ...


Open = Callable[[Iterator[pb.EmbedStreamRequest]], Call]


class EmbeddingStream(Iterator[Vector]):
    """Vectors of one space, in the order of the texts: each of shape (d,), the caller's own.

    `for` reads it; leaving the loop early and dropping the stream, `close()` or `with` ends the call.
    `encoder` is the version that embeds all texts. For int8, `scale` is what one step is worth, once the
    first vector is there.
    """

    def __init__(
        self,
        exchange: Exchange,
        texts: Iterable[str],
        open_call: Open,
        translate: Callable[[grpc.RpcError], TrimtabError],
    ) -> None:
        # The threads hold the pump and never this object, so that dropping it ends them.
        self._pump = _Pump(exchange, iter(texts), open_call, translate)
        self._finalizer = weakref.finalize(self, self._pump.close)

    @property
    def encoder(self) -> Encoder:
        """The version that embeds all texts of this stream."""
        return self._pump.exchange.encoder

    @property
    def scale(self) -> float:
        """What one step of int8 is worth; 0 for other dtypes, and before the first vector."""
        return self._pump.exchange.scale

    @property
    def adapters(self) -> tuple[str, ...]:
        """ENCODER/NAME of the adapters that the last answer's vectors passed through, in order."""
        return self._pump.exchange.adapters

    @property
    def variant(self) -> str:
        """The variant of the encoder that computed the last answer's vectors; "" before the first."""
        return self._pump.exchange.variant

    @property
    def browned_out(self) -> bool:
        """Whether a cheaper variant stood in for the encoder in any answer until now."""
        return self._pump.exchange.browned_out

    @property
    def suspicious(self) -> bool | None:
        """Whether the last vector's passage comes near to far too many queries (see `Embeddings`).

        None where the server did not look at it.
        """
        return self._pump.exchange.suspicious

    def __next__(self) -> Vector:
        """The next vector, shape (d,). Raises what the texts' iterable raised, or a TrimtabError."""
        try:
            vector = self._pump.take()
        except BaseException:
            self.close()
            raise
        if vector is None:
            self._pump.join()
            self.close()
            raise StopIteration
        return vector

    def close(self) -> None:
        """End the call; texts on their way are not embedded any more. Closing again does nothing."""
        self._finalizer()
        # A thread that the interpreter's end stops within gRPC keeps a lock that gRPC then waits for.
        self._pump.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Pump:
    def __init__(
        self,
        exchange: Exchange,
        texts: Iterator[str],
        open_call: Open,
        translate: Callable[[grpc.RpcError], TrimtabError],
    ) -> None:
        self.exchange = exchange
        self._open, self._translate = open_call, translate
        self._generation = forks.generation()
        self._calling = forks.Calling()
        self._calling.begin()
        lock = threading.RLock()
        # One lock, and one bell for each thread that may wait for a change.
        self._lock = threading.Condition(lock)
        self._room, self._sendable, self._ready = (threading.Condition(lock) for _ in range(3))
        self._closed = self._cancelled = False
        self._call: Call | None = None
        self._connection = 0
        feeder = threading.Thread(target=self._feed, args=(texts,), name="trimtab-stream-feeder", daemon=True)
        self._conversation = threading.Thread(
            target=self._converse, name="trimtab-stream-conversation", daemon=True
        )
        feeder.start()
        self._conversation.start()

    def take(self) -> Vector | None:
        if self._elsewhere:
            raise FailedPrecondition(
                "this stream was opened by the parent of this process, whose threads carry it: open one here"
            )
        with self._lock:
            while True:
                if self._closed:
                    return None
                now = time.monotonic()
                vector = self.exchange.take(now)
                if vector is not None:
                    self._room.notify()
                    return vector
                if self.exchange.finished:
                    return None
                self._ready.wait(self.exchange.patience(now))

    def join(self) -> None:
        """Let the server end a stream that is through: cancelled, it would count there as a failure."""
        if threading.current_thread() is not self._conversation and not self._elsewhere:
            self._conversation.join(GRACE)

    @property
    def _elsewhere(self) -> bool:
        """Whether this is a child's copy, whose locks may be held by threads that the child does not have."""
        return forks.generation() != self._generation

    def close(self) -> None:
        if self._elsewhere:
            return
        with self._lock:
            self._closed = True
            call = self._call
        if call is not None:
            call.cancel()  # before gRPC's writer ends, which would tell the server that all is well
        with self._lock:
            self._cancelled = True
            self._ring()

    def _ring(self) -> None:
        for bell in (self._lock, self._room, self._sendable, self._ready):
            bell.notify_all()

    def _feed(self, texts: Iterator[str]) -> None:
        error: BaseException | None = None
        try:
            while self._wait_for_room():
                text = next(texts)  # outside the lock: it may take its time
                with self._lock:
                    self.exchange.add(text, time.monotonic())
                    self._sendable.notify()
        except StopIteration:
            pass
        except BaseException as caught:  # the caller's iterable may raise anything, and gets it back
            error = caught
        with self._lock:
            self.exchange.end(error)
            self._ring()

    def _wait_for_room(self) -> bool:
        with self._lock:
            while not self._closed and self.exchange.room == 0:
                self._room.wait()
            return not self._closed

    def _converse(self) -> None:
        try:
            delay: float | None = 0.0
            while delay is not None and self._sleep(delay):
                delay = self._connect()
        except BaseException as error:  # whatever it was, nobody shall wait for this thread for ever
            with self._lock:
                self.exchange.fail(error)
                self._ring()
        finally:
            self._calling.end()

    def _sleep(self, seconds: float) -> bool:
        with self._lock:
            self._lock.wait_for(lambda: self._closed, seconds)
            return not self._closed

    def _connect(self) -> float | None:
        """Carry the exchange over one connection. Returns the seconds until the next one, None for none."""
        error: TrimtabError | None = None
        try:
            self._read(self._open(self._requests(self._connection)))
        except grpc.RpcError as caught:
            error = self._translate(caught)
        except TrimtabError as caught:  # the token's file cannot be read
            error = caught
        except ValueError as caught:
            if not str(caught).startswith("Cannot invoke RPC"):  # gRPC's words for a channel that was closed
                raise
            error = Cancelled("the client was closed while the stream was open")
        with self._lock:
            self._connection += 1
            delay = None if self._closed else self.exchange.broke(error)
            self._ring()
        return delay

    def _read(self, call: Call) -> None:
        with self._lock:
            self._call = call
            if self._closed:
                call.cancel()
        for answer in call:
            with self._lock:
                self.exchange.receive(answer, time.monotonic())
                self._ready.notify()
                self._sendable.notify()

    def _requests(self, connection: int) -> Iterator[pb.EmbedStreamRequest]:
        while True:
            with self._lock:
                while True:
                    # A later connection took over, or there is nothing left to say: the stream's end.
                    if self._cancelled or connection != self._connection or self.exchange.complete:
                        return
                    now = time.monotonic()
                    request = None if self._closed else self.exchange.send(now)
                    if request is not None:
                        break
                    self._sendable.wait(self.exchange.pause(now))
            yield request
