"""How a stream is carried over connections, without IO: three activities around one Exchange.

    feed       reads the caller's texts, no further than the window
    converse   reads answers, and opens the next connection when one breaks
    requests   gives gRPC's writer its messages, one generator per connection

These three and `vectors` are generators, which yield waits and actions for a stream to perform. Only one runs
at a time: EmbeddingStream gives each a thread and runs them under one lock; AsyncEmbeddingStream gives each a
task.
"""

import enum
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from trimtab.core.exchange import Exchange, Vector
from trimtab.errors import TrimtabError
from trimtab.v1 import encoder_pb2 as pb

END: Final = object()
"""The outcome of ReadText when there are no more texts."""


class Connection(Protocol):
    """An open call to the server."""

    def cancel(self) -> Any: ...


class Bell(enum.Enum):
    """What an activity may wait for. Each bell has one kind of listener."""

    ROOM = enum.auto()  # another text may be read
    SENDABLE = enum.auto()  # there may be something to send
    READY = enum.auto()  # there may be a vector, or an error
    CLOSED = enum.auto()  # the stream was closed


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until the bell rings, or for so many seconds; None: forever. Spurious wake-ups do no harm."""

    bell: Bell
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ReadText:
    """Read the caller's next text. The outcome is the text, or END; what the iterable raises is thrown."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Open connection `number`, which sends what `requests(number)` yields. The outcome is a Connection."""

    number: int


@dataclass(frozen=True, slots=True)
class Receive:
    """Read the connection's next answer. The outcome is the answer; None if the server ended the call."""


class Carrier:
    """Carries one Exchange. `ring` wakes up the listeners of a bell."""

    def __init__(
        self, exchange: Exchange, ring: Callable[[Bell], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.exchange = exchange
        self.closed = False
        self._ring, self._clock = ring, clock
        self._silent = False
        self._number = 0  # of the connection that is open, or will be opened next
        self._connection: Connection | None = None

    def close(self) -> Connection | None:
        """Stop taking and reading. Returns the connection to cancel before `silence`."""
        self.closed = True
        return self._connection

    def silence(self) -> None:
        """End every activity. If called before the connection is cancelled, the server sees a normal end."""
        self._silent = True
        self._ring_all()

    def vectors(self) -> Generator[Wait | Vector, None, None]:
        """The vectors in the order of the texts, until all are out or the stream is closed."""
        while not self.closed:
            now = self._clock()
            vector = self.exchange.take(now)
            if vector is not None:
                self._ring(Bell.ROOM)
                yield vector
            elif self.exchange.finished:
                break
            else:
                yield Wait(Bell.READY, self.exchange.patience(now))

    def feed(self) -> Generator[Wait | ReadText, Any, None]:
        """Read texts until they end, or the stream is closed."""
        error: BaseException | None = None
        try:
            while not self.closed:
                if self.exchange.room == 0:
                    yield Wait(Bell.ROOM, None)
                    continue
                text = yield ReadText()
                if text is END:
                    break
                self.exchange.add(text, self._clock())
                self._ring(Bell.SENDABLE)
        except GeneratorExit:
            raise
        except BaseException as caught:  # the iterable may raise anything, and the caller gets it
            error = caught
        self.exchange.end(error)
        self._ring_all()

    def converse(self) -> Generator[Wait | Connect | Receive, Any, None]:
        """Carry the exchange over one connection after another, until it is complete or has failed."""
        try:
            delay: float | None = 0.0
            while delay is not None and not self.closed:
                yield from self._pause(delay)
                if not self.closed:
                    delay = yield from self._over_one_connection()
        except GeneratorExit:
            raise
        except BaseException as error:  # whatever it was, no listener may wait forever
            self.exchange.fail(error)
            self._ring_all()

    def requests(self, number: int) -> Generator[Wait | pb.EmbedStreamRequest, None, None]:
        """What connection `number` sends, until a later one takes over or nothing is left to send."""
        while not self._silent and number == self._number and not self.exchange.complete:
            now = self._clock()
            request = None if self.closed else self.exchange.send(now)
            if request is None:
                yield Wait(Bell.SENDABLE, self.exchange.pause(now))
            else:
                yield request

    def _pause(self, seconds: float) -> Generator[Wait, None, None]:
        until = self._clock() + seconds
        while not self.closed and (left := until - self._clock()) > 0:
            yield Wait(Bell.CLOSED, left)

    def _over_one_connection(self) -> Generator[Connect | Receive, Any, float | None]:
        """Use one connection. Returns the seconds until the next one; None if there is to be none."""
        error: TrimtabError | None = None
        try:
            self._connection = connection = yield Connect(self._number)
            if self.closed:
                connection.cancel()
            while (answer := (yield Receive())) is not None:
                self.exchange.receive(answer, self._clock())
                self._ring(Bell.READY)
                self._ring(Bell.SENDABLE)
        except TrimtabError as caught:
            error = caught
        self._number += 1
        delay = None if self.closed else self.exchange.broke(error)
        self._ring_all()
        return delay

    def _ring_all(self) -> None:
        for bell in Bell:
            self._ring(bell)
