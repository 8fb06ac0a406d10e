"""Bounds the unanswered requests of a stream: beyond that, the server stops reading it."""

import asyncio

from trimtab_server.fronts.grpc.intake import OpenCall

# Bytes of a request that count as one text.
BYTES_A_TEXT = 4096


def weight(texts: int, size: int) -> int:
    """How much of its stream's window a request takes: its number of texts, or more if they are long."""
    return max(1, texts, size // BYTES_A_TEXT)


class Window:
    """Bounds the unanswered requests of one stream, in texts. A request of any size enters an empty window.

    Their bytes count for the stream's call, since the bytes of all calls together are bounded as well.
    """

    def __init__(self, limit: int, call: OpenCall | None = None) -> None:
        self._limit = limit
        self._texts = 0
        self._left = asyncio.Event()
        self._call = call

    async def enter(self, texts: int, size: int = 0) -> None:
        """Wait until there is room for this many more.

        `size`: their bytes; ResourceExhausted if all calls together hold too many.
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
