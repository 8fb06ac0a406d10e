"""One end of a connection between two processes of a server: messages, many to a frame."""

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
# A frame is the number of its bytes, and a list of messages.
LENGTH = struct.Struct("<I")


class Link(asyncio.Protocol, Generic[T]):
    """Sends and receives messages. For one event loop.

    All messages of one pass of the loop leave in one frame, so the other side wakes up once for all of them.
    `received` is called with each message, and `lost` once, when the other side is gone or `close` was
    called. The sender bounds how much is unsent: it waits for answers.
    """

    def __init__(
        self,
        encode: Callable[[list[Any]], bytes],
        decode: Callable[[memoryview], Sequence[T]],
        received: Callable[[T], None],
        lost: Callable[[], None],
    ) -> None:
        self._encode = encode
        self._decode = decode
        self._received = received
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._unsent: list[Any] = []
        self._buffer = bytearray()  # of a frame that has not arrived whole
        self._closed = asyncio.Event()

    async def open(self, sock: socket.socket) -> None:
        """Use a connected socket, which then belongs to the link."""
        await self._loop.create_unix_connection(lambda: self, sock=sock)

    def send(self, message: Any) -> None:
        """Send a message at the end of this pass of the loop; nothing happens if the other side is gone."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(message)

    async def close(self) -> None:
        """Send what is unsent, close the connection, and wait until that is done."""
        if self._transport is not None:
            self._flush()
            self._transport.close()
            await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ready."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand over the messages of each whole frame."""
        if self._buffer:
            self._buffer += data
            data = bytes(self._buffer)
        view, at = memoryview(data), 0
        while len(data) - at >= LENGTH.size:
            (size,) = LENGTH.unpack_from(data, at)
            end = at + LENGTH.size + size
            if end > len(data):
                break
            for message in self._decode(view[at + LENGTH.size : end]):
                self._received(message)
            at = end
        self._buffer = bytearray(view[at:])

    def connection_lost(self, error: Exception | None) -> None:
        """The other side is gone, or this one was closed."""
        self._transport = None
        self._closed.set()
        self._lost()

    def _flush(self) -> None:
        messages, self._unsent = self._unsent, []
        if messages and self._transport is not None:
            data = self._encode(messages)
            self._transport.writelines((LENGTH.pack(len(data)), data))
