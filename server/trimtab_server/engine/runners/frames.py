"""What the server and a device's own process say to each other over a socket: a head of fixed size, then raw
numbers, or JSON where it is no numbers. Either side raises EOFError when the other is gone.
"""

import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab_server.engine.batch import Ids, Model

T = TypeVar("T")
OPEN, CLOSE, RUN, TRY, OPEN_MAP, MAP, CLOSE_MAP, READY = range(1, 9)
OK, RAISED, STEP = 0, 1, 2
# What is asked, of which session, of how many texts or bytes.
REQUEST = struct.Struct("=III")
# What became of it; rows and columns of vectors, or the bytes of what was raised or found.
REPLY = struct.Struct("=III")


class Opening(msgspec.Struct, frozen=True):
    """A graph to open, and the kind and index of the device."""

    model: Model
    kind: str
    index: int


class Raised(msgspec.Struct, frozen=True):
    """An exception of the other side: its type's name, and its text."""

    kind: str
    text: str


def encode(value: msgspec.Struct) -> bytes:
    """As JSON."""
    return msgspec.json.encode(value, enc_hook=str)  # of paths


def decode(data: bytes | bytearray, type: type[T]) -> T:
    """What `encode` made of it."""

    def path(kind: Any, value: Any) -> Any:
        return Path(value)

    return msgspec.json.decode(data, type=type, dec_hook=path)


def receive(sock: socket.socket, size: int) -> bytearray:
    """Exactly so many bytes."""
    data = bytearray(size)
    _fill(sock, memoryview(data))
    return data


def reply(sock: socket.socket) -> tuple[int, int, int]:
    """The head of what became of something."""
    what, first, second = REPLY.unpack(receive(sock, REPLY.size))
    return what, first, second


def array(sock: socket.socket, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """An array of this shape, as the machine writes its numbers."""
    values: NDArray[Any] = np.empty(shape, dtype)
    if values.size:
        _fill(sock, values.data.cast("B"))
    return values


def send_ids(sock: socket.socket, session: int, ids: Sequence[Ids]) -> None:
    """Ask for the vectors of texts."""
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    tokens = np.concatenate(ids, dtype=np.int32)
    sock.sendall(b"".join((REQUEST.pack(RUN, session, len(ids)), lengths.tobytes(), tokens.tobytes())))


def receive_ids(sock: socket.socket, texts: int) -> list[Ids]:
    """The texts of `send_ids`, after its head."""
    lengths = array(sock, (texts,), np.int32)
    tokens = array(sock, (int(lengths.sum()),), np.int32)
    return np.split(tokens, np.cumsum(lengths)[:-1])


def _fill(sock: socket.socket, view: memoryview) -> None:
    while view:
        got = sock.recv_into(view)
        if not got:
            raise EOFError("the other side is gone")
        view = view[got:]
