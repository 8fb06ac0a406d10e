"""The stream of `Client.embed_stream`: a Carrier whose activities run in threads, under one lock.

The feeder and the conversation each have a thread; gRPC's writer is the third. The caller's own thread only
waits for the next vector.
"""

import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from trimtab import forks
from trimtab.core.answers import Encoder
from trimtab.core.carrier import END, Bell, Carrier, Connect, ReadText, Receive, Wait
from trimtab.core.exchange import GRACE, Exchange, Vector
from trimtab.errors import FailedPrecondition
from trimtab.sdk import channel
from trimtab.sdk.base import BaseStream
from trimtab.sdk.target import Target
from trimtab.v1 import encoder_pb2 as pb

Step = TypeVar("Step")


class StreamCall(Protocol):
    """The part of gRPC's call that the stream uses."""

    def __iter__(self) -> Iterator[pb.EmbedStreamResponse]: ...
    def cancel(self) -> Any: ...


Open = Callable[[Iterator[pb.EmbedStreamRequest]], StreamCall]


class EmbeddingStream(BaseStream, Iterator[Vector]):
    """Vectors of one space, in the order of the texts. Each has shape (d,) and belongs to the caller.

    Read it with `for`. The call ends with `close()`, at the end of `with`, or if the loop is left early and
    the stream dropped. `encoder` is the version that embeds all texts. For int8, `scale` is the value of one
    step, once the first vector has arrived.
    """

    def __init__(self, exchange: Exchange, texts: Iterable[str], open_call: Open, target: Target) -> None:
        # The threads hold the pump and never this object, so that dropping it ends them.
        self._pump = _Pump(exchange, iter(texts), open_call, target)
        self._finalizer = weakref.finalize(self, self._pump.close)

    @property
    def encoder(self) -> Encoder:
        """The version that embeds all texts of this stream."""
        return self._exchange.encoder

    @property
    def _exchange(self) -> Exchange:
        return self._pump.carrier.exchange

    def __next__(self) -> Vector:
        """The next vector, shape (d,). Raises what the iterable of texts raised, or a TrimtabError."""
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
        """End the call; texts still in flight are not embedded. Closing again does nothing."""
        self._finalizer()
        # A thread stopped inside gRPC when the interpreter exits keeps a lock that gRPC then waits for.
        self._pump.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Pump:
    def __init__(self, exchange: Exchange, texts: Iterator[str], open_call: Open, target: Target) -> None:
        self._open, self._target = open_call, target
        self._answers: Iterator[pb.EmbedStreamResponse]
        self._generation = forks.generation()
        self._calling = forks.Calling()
        self._calling.begin()
        self._lock = threading.RLock()
        self._bells = {bell: threading.Condition(self._lock) for bell in Bell}
        self.carrier = Carrier(exchange, lambda bell: self._bells[bell].notify_all())
        self._vectors = self.carrier.vectors()
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
        try:
            return self._advance(self._vectors)
        except StopIteration:
            return None

    def join(self) -> None:
        """Let the server end a finished stream: the server would count a cancelled one as a failure."""
        if threading.current_thread() is not self._conversation and not self._elsewhere:
            self._conversation.join(GRACE)

    def close(self) -> None:
        if self._elsewhere:
            return
        with self._lock:
            connection = self.carrier.close()
        if connection is not None:
            connection.cancel()
        with self._lock:
            self.carrier.silence()

    @property
    def _elsewhere(self) -> bool:
        """Whether this is a forked child's copy: threads that the child lacks may hold its locks."""
        return forks.generation() != self._generation

    def _feed(self, texts: Iterator[str]) -> None:
        self._drive(self.carrier.feed(), lambda step: next(texts, END))

    def _converse(self) -> None:
        try:
            self._drive(self.carrier.converse(), self._perform)
        finally:
            self._calling.end()

    def _perform(self, step: Connect | Receive | ReadText) -> StreamCall | pb.EmbedStreamResponse | None:
        with channel.translated_break(self._target):
            if isinstance(step, Connect):
                call = self._open(self._requests(step.number))
                self._answers = iter(call)
                return call
            return next(self._answers, None)

    def _requests(self, number: int) -> Iterator[pb.EmbedStreamRequest]:
        requests = self.carrier.requests(number)
        while True:
            try:
                request = self._advance(requests)
            except StopIteration:
                return
            yield request

    def _drive(self, steps: Generator[Any, Any, None], perform: Callable[[Any], Any]) -> None:
        """Run an activity to its end. Steps are performed without the lock, since they may take long."""
        try:
            step = self._advance(steps)
            while True:
                try:
                    outcome = perform(step)
                except BaseException as error:
                    step = self._advance(steps, error=error)
                else:
                    step = self._advance(steps, outcome)
        except StopIteration:
            pass

    def _advance(
        self,
        steps: Generator[Step | Wait, Any, Any],
        outcome: Any = None,
        *,
        error: BaseException | None = None,
    ) -> Step:
        """The activity's next step other than a wait. The lock is released only during waits."""
        with self._lock:
            step = steps.send(outcome) if error is None else steps.throw(error)
            while isinstance(step, Wait):
                self._bells[step.bell].wait(step.seconds)
                step = next(steps)
            return step
