"""What front ends and the engine's process tell each other.

Messages travel in MessagePack, and the numbers of arrays as they lie in memory. Both sides are processes of
one server on one machine: they trust each other, and share a clock.
"""

import logging
from typing import Any, TypeAlias

import msgspec
import numpy as np

import trimtab.errors
from trimtab.errors import InternalError, TrimtabError
from trimtab_server.engine.batch import Payload, Wanted
from trimtab_server.engine.port import Computed, ItemError, Pressure, Turn
from trimtab_server.engine.runners.runner import GraphError

log = logging.getLogger(__name__)


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """`call` numbers what is answered; each front end counts its own calls, models and admitted requests."""


class Load(_Message, frozen=True):
    """Load a model, as frames.encode writes it. Answered with Done: its number."""

    call: int
    model: bytes


class Unload(_Message, frozen=True):
    """This front end no longer needs a model. Answered with Done."""

    call: int
    model: int


class Admit(_Message, frozen=True):
    """As EnginePort.admit; the front end chooses the number `admitted`. Answered with Done."""

    call: int
    admitted: int
    model: int
    turn: Turn
    tokens: int
    held: int


class Compute(_Message, frozen=True):
    """As EnginePort.compute, answered with Answer. If `tokens` is not negative, the request is first
    admitted, as by Admit."""

    call: int
    admitted: int
    model: int
    turn: Turn
    payloads: list[Payload]
    wanted: Wanted
    tokens: int = -1
    held: int = 0


class Release(_Message, frozen=True):
    """As EnginePort.release."""

    admitted: int
    answered: bool


class Cancel(_Message, frozen=True):
    """Nobody waits for the answer of this call any more."""

    call: int


class Rehearse(_Message, frozen=True):
    """Try a piece, as frames.encode writes it. Answered with Rehearsed."""

    call: int
    piece: bytes


class Done(_Message, frozen=True):
    """A call has succeeded."""

    call: int
    number: int = 0


class Answer(_Message, frozen=True):
    """What was computed."""

    call: int
    computed: Computed


class Rehearsed(_Message, frozen=True):
    """What a rehearsal found, as frames.encode writes it."""

    call: int
    found: bytes


class Failed(_Message, frozen=True):
    """A call has raised an error: the name of its class, its text, `retry_after`, and an ItemError's row."""

    call: int
    kind: str
    text: str
    retry_after: float = 0.0
    row: int = -1


class Pressed(_Message, frozen=True):
    """The state of the queue now."""

    pressure: Pressure


class Serving(_Message, frozen=True):
    """Whether any device is in service."""

    up: bool


class Retired(_Message, frozen=True):
    """A model is no longer run, and why."""

    model: int
    why: str


ToEngine: TypeAlias = Load | Unload | Admit | Compute | Release | Cancel | Rehearse
ToFrontEnd: TypeAlias = Done | Answer | Rehearsed | Failed | Pressed | Serving | Retired

_ERRORS: dict[str, type[TrimtabError]] = {
    each.__name__: each
    for each in vars(trimtab.errors).values()
    if isinstance(each, type) and issubclass(each, TrimtabError)
}


def failed(call: int, error: Exception) -> Failed:
    """An error as a message. One that is none of ours is logged, since nobody else may see what it says."""
    if isinstance(error, ItemError):
        if error.__cause__ is not None:
            log.error("%s", error, exc_info=error.__cause__)
        return Failed(call, "ItemError", error.why, row=error.row)
    known = next((each.__name__ for each in type(error).__mro__ if each.__name__ in _ERRORS), "")
    if not known and not isinstance(error, GraphError):
        log.error("what a front end has asked for has failed", exc_info=error)
        return Failed(call, "", "the engine failed; its log tells more")
    text = str(error).encode("utf-8", "backslashreplace").decode()  # it may name a file that is not UTF-8
    retry_after = error.retry_after if isinstance(error, TrimtabError) else 0.0
    return Failed(call, known or GraphError.__name__, text, retry_after)


def raised(message: Failed) -> Exception:
    """The error of a message."""
    if message.kind == "ItemError":
        return ItemError(message.row, message.text)
    if message.kind == GraphError.__name__:
        return GraphError(message.text)
    return _ERRORS.get(message.kind, InternalError)(message.text, message.retry_after)


def _lying(value: Any) -> Any:
    """An array or a column, for msgspec."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.data if value.flags.c_contiguous else value.tobytes()
    raise TypeError(f"{value!r} is no plain value")


def _array(kind: Any, value: Any) -> Any:
    dtype, shape, data = value
    return np.frombuffer(data, dtype).reshape(shape) if data else np.empty(shape, dtype)


encode = msgspec.msgpack.Encoder(enc_hook=_lying).encode
decode_to_engine = msgspec.msgpack.Decoder(list[ToEngine], dec_hook=_array).decode
decode_to_front_end = msgspec.msgpack.Decoder(list[ToFrontEnd], dec_hook=_array).decode
