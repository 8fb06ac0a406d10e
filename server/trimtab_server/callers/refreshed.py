"""Files that are re-read when they change: certificates, keys."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from trimtab.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")
# Seconds between two checks of the files.
INTERVAL = 1.0


class WatchedFiles(Generic[T]):
    """The value that `read` makes of some files, made again after any of them changes. Thread-safe.

    ConfigError, naming the file, if the first read fails. A later failure is logged and the previous value
    kept: a file is often replaced a moment before its companion.
    """

    def __init__(
        self,
        what: str,
        files: tuple[Path, ...],
        read: Callable[[], T],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._files, self._read, self._clock = what, files, read, clock
        self._lock = Lock()
        try:
            self._seen = self._stamps()
            self._value = read()
        except OSError as error:
            raise ConfigError(f"{what}: {error.filename} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{what}: {error}") from None
        self._next = clock() + INTERVAL

    def get(self) -> T:
        """The current value, at most a second old."""
        if self._clock() >= self._next:
            with self._lock:
                self._look()
        return self._value

    def _look(self) -> None:
        self._next = self._clock() + INTERVAL
        try:
            stamps = self._stamps()
            if stamps != self._seen:
                self._value = self._read()
                self._seen = stamps
                log.info("%s was re-read", self._what)
        except (OSError, ValueError) as error:
            log.error("%s cannot be re-read, and stays as it was: %s", self._what, error)

    def _stamps(self) -> list[tuple[int, int, int]]:
        stats = [path.stat() for path in self._files]
        return [(each.st_mtime_ns, each.st_ino, each.st_size) for each in stats]
