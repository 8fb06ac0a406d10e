"""A progress line on a terminal; an occasional line if standard error is not a terminal."""

import sys
import time
from types import TracebackType
from typing import Self

REDRAW_SECONDS = 0.1
LOG_SECONDS = 10.0


class Progress:
    """Counts `unit`s done, out of `total` if known. Use as a context manager."""

    def __init__(self, label: str, unit: str, total: int | None = None, done: int = 0) -> None:
        self.label, self.unit, self.total = label, unit, total
        self.done = self.first = done
        self.started = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self._next = self.started + (0.0 if self.terminal else LOG_SECONDS)

    def advance(self, count: int = 1) -> None:
        """Count `count` more, and redraw if it is time."""
        self.done += count
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (REDRAW_SECONDS if self.terminal else LOG_SECONDS)
            self._draw(now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw(time.monotonic())
        if self.terminal:
            sys.stderr.write("\n")

    def _draw(self, now: float) -> None:
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        text = f"{self.label}: {self.done:,}"
        if self.total is not None:
            left = (self.total - self.done) / rate if rate else 0.0
            share = self.done / self.total if self.total else 1.0
            text += f" of {self.total:,} {self.unit} ({share:.0%}, {rate:,.0f}/s, {left:,.0f} s left)"
        else:
            text += f" {self.unit} ({rate:,.0f}/s)"
        sys.stderr.write(f"\r\x1b[K{text}" if self.terminal else f"{text}\n")
        sys.stderr.flush()
