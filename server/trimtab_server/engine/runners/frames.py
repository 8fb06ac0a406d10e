"""The protocol between the server and a device's own process, over a socket: a header of fixed size, then
JSON, then the raw numbers of columns. Either side raises EOFError when the other is gone.
"""

import math
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from trimtab.inputs.graph import GraphInput
from trimtab.inputs.known import INPUTS
from trimtab.values.column import Column, Columns, Values
from trimtab_server.engine.batch import Model, Wanted

T = TypeVar("T")
OPEN, CLOSE, RUN, TRY, OPEN_ADAPTER, ADAPT, CLOSE_ADAPTER, READY = range(1, 9)
OK, RAISED, STEP = 0, 1, 2
# The operation, the number of the graph, and how many bytes of JSON follow.
REQUEST = struct.Struct("=III")
# The outcome, and how many bytes of JSON follow.
REPLY = struct.Struct("=II")
# Smaller messages are sent in one piece, with their header.
AT_ONCE = 1 << 16


class OpenRequest(msgspec.Struct, frozen=True):
    """A graph to open, the kind and index of the device, and how many runs there may be at a time."""

    model: Model
    kind: str
    index: int
    workers: int = 1


class RaisedError(msgspec.Struct, frozen=True):
    """An exception of the other side: its type's name, and its text."""

    kind: str
    text: str


class ColumnHeader(msgspec.Struct, frozen=True, array_like=True):
    """A column, whose numbers follow: first its offsets, if it has `items` of several rows (else -1)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    items: int = -1


class ColumnsHeader(msgspec.Struct, frozen=True, array_like=True):
    """Columns, and what is wanted of them."""

    columns: tuple[ColumnHeader, ...]
    wanted: Wanted = ()


_decode_described = msgspec.json.Decoder(ColumnsHeader).decode


def encode(value: object) -> bytes:
    """As JSON."""
    return msgspec.json.encode(value, enc_hook=str)  # of paths


def decode(data: bytes | bytearray, type: type[T]) -> T:
    """What `encode` made of it."""

    def hook(kind: Any, value: Any) -> Any:
        if kind is GraphInput:
            return msgspec.convert(value, INPUTS[value["kind"]])
        return Path(value)

    return msgspec.json.decode(data, type=type, dec_hook=hook)


def receive(sock: socket.socket, size: int) -> bytearray:
    """Exactly so many bytes."""
    data = bytearray(size)
    _fill(sock, memoryview(data))
    return data


def reply(sock: socket.socket) -> tuple[int, int]:
    """An outcome, and how many bytes of JSON follow."""
    what, size = REPLY.unpack(receive(sock, REPLY.size))
    return what, size


def described(columns: Columns, wanted: Wanted = ()) -> tuple[bytes, list[memoryview]]:
    """Columns as JSON, and their numbers as they lie in memory."""
    lying, numbers = [], []
    for name, column in columns.items():
        values, offsets = column.values, column.offsets
        lying.append(
            ColumnHeader(name, values.dtype.str, values.shape, -1 if offsets is None else len(column))
        )
        if offsets is not None:
            numbers.append(offsets)
        numbers.append(np.ascontiguousarray(values))
    data = msgspec.json.encode(ColumnsHeader(tuple(lying), wanted))
    return data, [each.data.cast("B") for each in numbers if each.size]


def send(sock: socket.socket, head: bytes, parts: Sequence[bytes | memoryview]) -> None:
    """Send a header and what belongs to it."""
    if sum(map(len, parts)) <= AT_ONCE:
        sock.sendall(b"".join((head, *parts)))
        return
    for part in (head, *parts):  # to join them would be to copy them
        sock.sendall(part)


def receive_columns(sock: socket.socket, size: int, most: float = math.inf) -> tuple[Columns, Wanted]:
    """Receive columns, described by `size` bytes of JSON. EOFError if they take more than `most` bytes, or
    are not plain numbers: nothing like that was asked for."""
    described = _decode_described(receive(sock, size))
    columns = {}
    for lying in described.columns:
        dtype, offsets = np.dtype(lying.dtype), None
        bytes_ = dtype.itemsize * math.prod(lying.shape) + 8 * max(0, lying.items + 1)
        if dtype.kind not in "biuf" or min(lying.shape, default=0) < 0 or bytes_ > most:
            raise EOFError(f"an array of {dtype} {lying.shape} was not asked for")
        most -= bytes_
        if lying.items >= 0:
            offsets = _array(sock, np.dtype(np.int64), (lying.items + 1,))
        columns[lying.name] = Column(_array(sock, dtype, lying.shape), offsets)
    return columns, described.wanted


def _array(sock: socket.socket, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> Values:
    """An array of this shape, as the machine writes its numbers."""
    values = np.empty(shape, dtype)
    if values.size:
        _fill(sock, values.data.cast("B"))
    return values


def _fill(sock: socket.socket, view: memoryview) -> None:
    while view:
        got = sock.recv_into(view)
        if not got:
            raise EOFError("the other side is gone")
        view = view[got:]
