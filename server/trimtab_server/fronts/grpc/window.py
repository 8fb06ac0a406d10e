"""What a stream may have unanswered before it is read no further."""

import asyncio

from trimtab_server.fronts.grpc.intake import OpenCall

# So many bytes of a request count as a text.
BYTES_A_TEXT = 4096


def weight(texts: int, size: int) -> int:
    """What a request of so many texts and bytes takes of its stream's window: its texts, or its bytes where
    they are many more."""
    return max(1, texts, size // BYTES_A_TEXT)


class Window:
    """Bounds what is unanswered of one stream, in texts. A request of any size enters an empty window.

    The requests are held by the call that the stream is: all calls together are bounded, too, in bytes.
    """

    def __init__(self, limit: int, call: OpenCall | None = None) -> None:
        self._limit = limit
        self._texts = 0
        self._left = asyncio.Event()
        self._call = call

    async def enter(self, texts: int, size: int = 0) -> None:
        """Wait until there is room for this many more.

        `size`: their bytes; ResourceExhausted where calls hold too many of these.
        """
        if self._call is not None:
            self._call.hold(size)
        while self._texts and self._texts + texts > self._limit:
            self._left.clear()
            await self._left.wait()
        self._texts += texts

    def leave(self, texts: int, size: int = 0) -> None:
        """Make room again."""
        if self._call is not None:
            self._call.release(size)
        self._texts -= texts
        self._left.set()
