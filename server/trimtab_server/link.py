"""One end of a connection between two processes of a server: messages, many to a frame."""

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

log = logging.getLogger(__name__)

T = TypeVar("T")
# A frame is the number of its bytes, and a list of messages.
LENGTH = struct.Struct("<I")
# So many messages at most go into a frame: each frame is decoded in one piece.
MOST_MESSAGES = 64
# How long `close` waits for the other side to read what is left.
CLOSE_SECONDS = 1.0


class Link(asyncio.Protocol, Generic[T]):
    """Sends and receives messages. For one event loop.

    Messages of one pass of the loop leave together, so the other side wakes up once for all of them. What is
    sent before `open` leaves then. `received` is called with each message, and `lost` once, when the other
    side is gone or the link was closed.
    """

    def __init__(
        self,
        encode: Callable[[list[Any]], bytes],
        decode: Callable[[bytes], Sequence[T]],
        received: Callable[[T], None],
        lost: Callable[[], None],
    ) -> None:
        self._encode = encode
        self._decode = decode
        self._received = received
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._closed = asyncio.Event()
        self._unsent: list[Any] = []
        self._parts: list[bytes] = []  # of frames that have not arrived whole
        self._arrived = 0  # their bytes
        self._size: int | None = None  # of the first of these frames, if known

    async def open(self, sock: socket.socket) -> None:
        """Use a connected socket, which then belongs to the link."""
        await self._loop.create_unix_connection(lambda: self, sock=sock)

    def send(self, message: Any) -> None:
        """Send a message at the end of this pass of the loop; nothing happens if the other side is gone."""
        if self._closed.is_set():
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(message)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the other side has not read, beyond what the system takes."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    async def close(self) -> None:
        """Send what is unsent, close the connection, and wait until that is done."""
        if self._transport is None:
            return
        self._flush()
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._closed.wait()
        if self._transport is not None:  # the other side does not read
            self._transport.abort()
            await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ready."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Hand over the messages of each whole frame."""
        self._parts.append(data)
        self._arrived += len(data)
        while (frame := self._frame()) is not None:
            for message in self._decode(frame):
                try:
                    self._received(message)
                except Exception:  # of one message, which must not end the connection
                    log.exception("%s could not be handled", type(message).__name__)

    def connection_lost(self, error: Exception | None) -> None:
        """The other side is gone, or this one was closed."""
        self._transport = None
        self._unsent.clear()
        self._closed.set()
        self._lost()

    def _frame(self) -> bytes | None:
        """The next whole frame, if it has arrived. Parts are joined only when all are there."""
        if self._size is None:
            if self._arrived < LENGTH.size:
                return None
            self._join()
            (self._size,) = LENGTH.unpack_from(self._parts[0])
        end = LENGTH.size + self._size
        if self._arrived < end:
            return None
        whole = self._join()
        self._parts = [whole[end:]] if len(whole) > end else []
        self._arrived -= end
        self._size = None
        return whole[LENGTH.size : end]

    def _join(self) -> bytes:
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    def _flush(self) -> None:
        if self._transport is None:
            return
        messages, self._unsent = self._unsent, []
        for start in range(0, len(messages), MOST_MESSAGES):
            for data in self._encoded(messages[start : start + MOST_MESSAGES]):
                self._transport.writelines((LENGTH.pack(len(data)), data))

    def _encoded(self, messages: list[Any]) -> list[bytes]:
        """Messages as a frame; if one of them cannot be encoded, the others as a frame each."""
        try:
            return [self._encode(messages)]
        except Exception:
            if len(messages) == 1:
                log.exception("%s could not be sent", type(messages[0]).__name__)
                return []
        return [data for each in messages for data in self._encoded([each])]
