"""The order of a stream, without IO: texts go in, messages go out, rows come back in the order of the texts.

A text is *read* when it is added and *handed out* when its row is taken; at most `size` texts are in between.
Waiting texts are put into a message only when the connection can take one, so texts of a slow producer leave
at once, and texts of a fast one leave together. A message keeps its id and its texts until it is answered.
When a connection breaks, only what is unanswered is sent again.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")
_AT_ONCE = float("-inf")


@dataclass(slots=True)
class Message(Generic[Row]):
    """Consecutive texts that travel together."""

    id: int
    texts: list[str]
    rows: Sequence[Row] | None = None
    error: Exception | None = None
    refusals: int = 0


class ReorderBuffer(Generic[Row]):
    """Tracks what is read, in flight, answered and handed out. Times are seconds of any one clock."""

    def __init__(self, size: int, message_texts: int, message_bytes: int) -> None:
        self._size, self._message_texts, self._message_bytes = size, message_texts, message_bytes
        self._waiting: deque[tuple[str, int]] = deque()  # read, in no message yet
        self._messages: dict[int, Message[Row]] = {}  # until its last row is handed out
        self._sent: set[int] = set()
        self._again: list[tuple[float, int]] = []  # a heap of (time to send, id)
        self._next_id = 0
        self._head = 0  # the message whose rows are handed out next
        self._handed = 0  # how many of its rows were handed out
        self._held = 0
        self._ended = False
        self._end_error: BaseException | None = None

    @property
    def room(self) -> int:
        """How many texts may be added now."""
        return 0 if self._ended else self._size - self._held

    @property
    def owed(self) -> bool:
        """Whether a text was read and not answered yet."""
        return bool(self._waiting or self._sent or self._again)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to send or receive."""
        return self._ended and not self.owed

    @property
    def finished(self) -> bool:
        """Whether every row was handed out, and no error is left to raise."""
        return self._ended and not self._held and self._end_error is None

    def add(self, text: str, size: int) -> None:
        """Add one text that takes `size` bytes of a message. Only if there is room."""
        if self.room <= 0:
            raise ValueError("no room in the window")
        self._waiting.append((text, size))
        self._held += 1

    def end(self, error: BaseException | None = None) -> None:
        """There are no more texts; `error` says why, and is raised after the rows of those before it."""
        self._ended, self._end_error = True, error

    def send(self, now: float) -> Message[Row] | None:
        """The message to write next; None if there is none yet."""
        if self._again and self._again[0][0] <= now:
            message = self._messages[heapq.heappop(self._again)[1]]
        elif self._waiting:
            message = Message(self._next_id, self._gather())
            self._messages[message.id] = message
            self._next_id += 1
        else:
            return None
        self._sent.add(message.id)
        return message

    def due(self) -> float | None:
        """When `send` will have a message again without more texts; None if it never will."""
        return self._again[0][0] if self._again else None

    def sent(self, id: int) -> Message[Row] | None:
        """The message with this id if it is in flight; otherwise None."""
        return self._messages[id] if id in self._sent else None

    def answer(self, message: Message[Row], rows: Sequence[Row]) -> None:
        """Take the rows of a message in flight, one for each of its texts."""
        self._sent.remove(message.id)
        message.rows = rows

    def fail(self, message: Message[Row], error: Exception) -> None:
        """Raise this error in place of the message's rows, when their turn comes."""
        self._sent.remove(message.id)
        message.error = error

    def retry(self, message: Message[Row], at: float) -> None:
        """Send a message in flight once more, at `at` or later."""
        self._sent.remove(message.id)
        message.refusals += 1
        heapq.heappush(self._again, (at, message.id))

    def lost(self) -> None:
        """The connection broke: messages in flight are sent again over the next one."""
        for id in self._sent:
            heapq.heappush(self._again, (_AT_ONCE, id))
        self._sent.clear()

    def take(self) -> Row | None:
        """The next row in order, or None if there is none yet or no more. Raises the error in its place."""
        head = self._messages.get(self._head)
        if head is None:
            if self._ended and not self._held and self._end_error is not None:
                raise self._end_error
            return None
        if head.error is not None:
            raise head.error
        if head.rows is None:
            return None
        row = head.rows[self._handed]
        self._handed += 1
        self._held -= 1
        if self._handed == len(head.texts):
            del self._messages[self._head]
            self._head += 1
            self._handed = 0
        return row

    def _gather(self) -> list[str]:
        texts: list[str] = []
        filled = 0
        while self._waiting and len(texts) < self._message_texts:
            text, size = self._waiting[0]
            if texts and filled + size > self._message_bytes:
                break
            self._waiting.popleft()
            texts.append(text)
            filled += size
        return texts
