"""What a stream may have unanswered before it is read no further."""

import asyncio

# So many bytes of a request count as a text.
BYTES_A_TEXT = 4096


def weight(texts: int, size: int) -> int:
    """What a request of so many texts and bytes takes of its stream's window: its texts, or its bytes where
    they are many more."""
    return max(1, texts, size // BYTES_A_TEXT)


class Window:
    """Bounds what is unanswered of one stream, in texts. A request of any size enters an empty window."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._texts = 0
        self._left = asyncio.Event()

    async def enter(self, texts: int) -> None:
        """Wait until there is room for this many more."""
        while self._texts and self._texts + texts > self._limit:
            self._left.clear()
            await self._left.wait()
        self._texts += texts

    def leave(self, texts: int) -> None:
        """Make room again."""
        self._texts -= texts
        self._left.set()
