"""One pass of a re-index: its rate limit, the texts it gives to the stream, and its counts."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from trimtab.errors import ConfigError
from trimtab.stores.base import Document
from trimtab.stores.ids import Id

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Aside:
    """A document that was not moved, and why."""

    id: Id
    reason: str


class RateLimit:
    """At most `rate` texts per second; None for no limit."""

    def __init__(self, rate: float | None) -> None:
        if rate is not None and not rate > 0:
            raise ConfigError(f"rate is {rate}; give texts a second above 0, or leave it out for no limit")
        self.seconds = 1 / rate if rate else 0.0
        self._next = time.monotonic()

    def wait(self) -> None:
        """Wait until the next text may be sent."""
        if self.seconds:
            now = time.monotonic()
            self._next = max(self._next, now - self.seconds) + self.seconds
            time.sleep(max(0.0, self._next - now))


@dataclass(slots=True)
class PassCounts:
    """What one pass did.

    seen: documents of the source. moved: documents that were embedded. kept: documents already in the target.
    aside: documents that cannot be moved, and why. former: how many of these are in the target with an
        earlier text.
    """

    advance: Advance
    seen: int = 0
    moved: int = 0
    kept: int = 0
    former: int = 0
    aside: dict[Id, str] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)  # the stream reads in its own thread

    def count(self, *, seen: int = 0, moved: int = 0, kept: int = 0, aside: int = 0, former: int = 0) -> None:
        """Add to the counts."""
        with self._guard:
            self.seen += seen
            self.moved += moved
            self.kept += kept
            self.former += former
            self.advance(moved + kept + aside)


class Feed(Iterator[str]):
    """The texts of documents for one stream. `sent` has each document until its vector arrives.

    again: documents to send first; the rest is for the next stream.
    """

    def __init__(self, again: deque[Document], documents: Iterator[Document]) -> None:
        self._again, self._documents = again, documents
        self._open, self._guard = True, threading.Lock()
        self.sent: deque[Document] = deque()
        self.failed = False  # set if reading the documents failed

    def __next__(self) -> str:
        with self._guard:
            if not self._open:
                raise StopIteration
            try:
                document = self._again.popleft() if self._again else next(self._documents)
            except StopIteration:
                raise
            except BaseException:
                self.failed = True
                raise
            self.sent.append(document)
            return document.text or ""

    def stop(self) -> list[Document]:
        """Give out no more texts. Returns the documents that have no vector yet."""
        with self._guard:
            self._open = False
            return list(self.sent)
