"""The conversation of a stream, without IO: requests, answers, refusals, lost connections, timeouts.

Each stream owns one Exchange and only moves its messages. The stream calls it under one lock or on one event
loop, and passes the current time.
"""

import math
import random
from typing import Any

from numpy.typing import NDArray

from trimtab.core.answers import Encoder
from trimtab.core.options import Options
from trimtab.core.reorder import Message, ReorderBuffer
from trimtab.core.requests import text_room, text_size
from trimtab.core.responses import Origin, parse, unloaded
from trimtab.errors import (
    ConfigError,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NotFound,
    TrimtabError,
    Unavailable,
    code_of,
    from_code,
)
from trimtab.v1 import encoder_pb2 as pb

DEFAULT_WINDOW = 256
# Enough to share the cost of a message, and few enough for a steady flow of answers.
MESSAGE_TEXTS = 16
# How many connections in a row may break without an answer in between.
ATTEMPTS = 8
# How often a request is sent again, over some seconds, if its version is unknown to the server.
LATE_ATTEMPTS = 5
_IDLE_ATTEMPT = 3  # the backoff while nothing is owed
# Seconds that a server may take to end a stream after its last answer.
GRACE = 1.0
FIRST_BACKOFF = 0.2
MAX_BACKOFF = 5.0

Vector = NDArray[Any]
Row = tuple[Vector, bool | None]  # and whether it is suspicious


class Exchange:
    """One stream of texts to one version of one encoder; it outlives the connections that carry it.

    `encoder` is the version that embeds all texts; `timeout` is the longest wait, in seconds, for an answer
    that is due.
    """

    def __init__(self, options: Options, encoder: Encoder, window: int, timeout: float) -> None:
        if window < 1:
            raise InvalidArgument(f"window is {window}; give at least 1 text")
        limits = encoder.limits
        self.encoder = encoder
        # The space of another variant is known from the first answer.
        self.space = options.values["space"] or (encoder.space if options.itself else "")
        self.scale = 0.0
        self.adapters: tuple[str, ...] = ()  # of the last answer
        self.variant = ""
        self.browned_out = False  # any answer so far
        self.suspicious: bool | None = None  # of the last vector taken; None: not checked
        self._options = options.pinned(encoder)
        self._timeout = timeout
        self._text_room = text_room(self._options, limits)
        self._window = ReorderBuffer[Row](
            window, min(MESSAGE_TEXTS, limits.max_texts or MESSAGE_TEXTS), self._text_room
        )
        self._read = 0
        self._since = 0.0  # time of the last answer, or when the first became due
        self._origin: Origin | None = None
        self._breaks = 0  # without an answer in between
        self._refusal: TrimtabError | None = None  # the last one, of a request or of a connection
        self._failure: BaseException | None = None

    @property
    def room(self) -> int:
        """How many texts may be read now."""
        return self._window.room

    @property
    def answered(self) -> bool:
        """Whether all texts were read and all requests answered."""
        return self._window.complete

    @property
    def complete(self) -> bool:
        """Whether nothing is left to send: everything is answered, or the stream has failed."""
        return self.answered or self._failure is not None

    @property
    def finished(self) -> bool:
        """Whether every vector was taken, and no error is left to raise."""
        return self._window.finished and self._failure is None

    def add(self, text: str, now: float) -> None:
        """Add one text. InvalidArgument if no message can carry it."""
        size = text_size(text, self._read, self._text_room)
        if not self._window.owed:
            self._since = now
        self._window.add(text, size)
        self._read += 1

    def end(self, error: BaseException | None = None) -> None:
        """There are no more texts; `error` is raised after the vectors of those before it."""
        self._window.end(error)

    def send(self, now: float) -> pb.EmbedStreamRequest | None:
        """The next message to write; None if there is none yet."""
        message = self._window.send(now)
        if message is None:
            return None
        return pb.EmbedStreamRequest(id=message.id, request=self._options.request(message.texts))

    def pause(self, now: float) -> float | None:
        """Seconds until `send` has a message without more texts; None if it needs more texts."""
        due = self._window.due()
        return None if due is None else max(due - now, 0.0)

    def receive(self, answer: pb.EmbedStreamResponse, now: float) -> None:
        """Handle one message from the server."""
        message = self._window.sent(answer.id)
        if message is None:
            self._failure = InternalError(f"the server answered request {answer.id}, which was not sent")
        elif answer.HasField("error"):
            self._refuse(message, answer.error, now)
        else:
            try:
                self._accept(message, answer.response, now)
            except TrimtabError as error:
                self._window.fail(message, error)

    def fail(self, error: BaseException) -> None:
        """End the stream: `error` is raised in place of the missing vectors."""
        self._failure = error

    def broke(self, error: TrimtabError | None) -> float | None:
        """The connection ended with `error`, or without one although answers are still due.

        Returns the seconds after which to open the next one; None if the stream has failed.
        """
        self._window.lost()
        if self.complete:
            return None
        if error is None:
            error = Unavailable("the server ended the stream before it had answered every request")
        self._refusal = error
        # A token file may be missing while it is renewed.
        again = error.retryable or isinstance(error, ConfigError)
        if again and not self._window.owed:
            return _backoff(_IDLE_ATTEMPT)  # the next text needs a connection, however often this happens
        self._breaks += 1
        if not again or self._breaks >= ATTEMPTS:
            self._failure = error
            return None
        return max(_backoff(self._breaks), getattr(error, "retry_after", 0.0))

    def take(self, now: float) -> Vector | None:
        """The next vector in order; None if it is not there yet or all were taken. Raises what failed."""
        row = self._window.take()
        if row is not None:
            vector, self.suspicious = row
            return vector
        if not self.finished:
            if self._failure is not None:
                raise self._failure
            if self.patience(now) == 0:
                last = f". The last error was: {self._refusal}" if self._refusal else ""
                raise DeadlineExceeded(
                    f"no answer from the stream for {self._timeout:g} s; pass a longer timeout, "
                    f"or look at the server's load{last}"
                ) from self._refusal
        return None

    def patience(self, now: float) -> float | None:
        """Seconds that an answer may still take; None if none is due or there is no limit."""
        if not self._window.owed or math.isinf(self._timeout):
            return None
        return max(self._since + self._timeout - now, 0.0)

    def _accept(self, message: Message[Row], response: pb.EmbedResponse, now: float) -> None:
        (part,) = parse(response, len(message.texts))
        if self._origin is None:
            if self.space not in ("", part.origin.space):
                raise FailedPrecondition(
                    f"vectors of space {self.space} were expected of {self.encoder.name} "
                    f"{self.encoder.version}, but they are of space {part.origin.space}: the servers "
                    "behind this address hold different bundles under one version"
                )
            self._origin, self.scale = part.origin, part.origin.scale
        self._origin.check(part.origin)
        self.adapters, self.variant = part.adapters, part.variant
        self.browned_out |= part.browned_out
        # Copies: a view would keep the whole message alive for one vector.
        rows = [row.copy() for row in part.vectors]
        flags = [None] * len(rows) if part.reach is None else part.suspicious.tolist()
        self._window.answer(message, list(zip(rows, flags, strict=True)))
        self._since, self._breaks = now, 0

    def _refuse(self, message: Message[Row], refusal: pb.Error, now: float) -> None:
        retry_after = refusal.retry_after_ms / 1000
        error = from_code(code_of(refusal.code), refusal.message, retry_after)
        # Another replica may be about to load the version that was pinned.
        late = isinstance(error, NotFound) and message.refusals < LATE_ATTEMPTS
        if error.retryable or late:
            self._refusal = error
            self._window.retry(message, now + (retry_after or _backoff(message.refusals + 1)))
        elif isinstance(error, NotFound):
            self._window.fail(message, unloaded(error, self.encoder.name, self.encoder.version))
        else:
            self._window.fail(message, error)


def _backoff(attempt: int) -> float:
    # Jitter keeps the clients of a server that went away from all coming back at once.
    return min(FIRST_BACKOFF * 2.0 ** (attempt - 1), MAX_BACKOFF) * random.uniform(0.5, 1.0)  # noqa: S311
