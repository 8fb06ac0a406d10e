"""Records requests and their outcomes: each answer is compared with the known vector of its text."""

import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from bench.chaos import known
from trimtab import errors

CHECKED = 256  # answers that are compared at once
# One text in this many is popular: others request it too, perhaps at the same time.
SHARED, POPULAR = 20, 50


@dataclass
class Ledger:
    """The outcomes of requests; shared by threads."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)
    _rows: list[tuple[int, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, times: int = 1) -> None:
        """sent, lost, twice, given_up."""
        with self._lock:
            self.counts[what] += times

    def answer(self, numbers: Sequence[int], vectors: Any) -> None:
        """Record that these texts were answered with these rows."""
        with self._lock:
            self.counts["answered"] += len(numbers)
            if len(vectors) != len(numbers):
                self.counts["wrong"] += len(numbers)
                return
            self._rows += zip(numbers, vectors, strict=True)
            rows, self._rows = (self._rows, []) if len(self._rows) >= CHECKED else ([], self._rows)
        self._check(rows)

    def compared(self, right: Sequence[bool]) -> None:
        """Record answers that were compared already: whether each was right."""
        with self._lock:
            self.counts["answered"] += len(right)
            self.counts["checked"] += len(right)
            self.counts["several"] += len(right)
            self.counts["wrong"] += len(right) - sum(right)

    def error(self, kind: str, error: Exception, times: int = 1) -> None:
        """Record that this many requests ended with this error."""
        with self._lock:
            self.counts["errors"] += times
            code = getattr(error, "code", None)
            code = code() if callable(code) else code
            name = type(error).__name__
            if isinstance(code, grpc.StatusCode | errors.Code):
                name = code.name
            if hasattr(error, "status"):  # tritonclient's
                name = str(error.status()).removeprefix("StatusCode.")
            self.errors[f"{kind} {name}"] += times
            if name in ("INTERNAL", "UNKNOWN", "InternalError") and len(self.unknown) < 20:
                self.unknown.append(f"{kind}: {error}"[:300])

    def finish(self) -> None:
        """Compare the remaining answers."""
        with self._lock:
            rows, self._rows = self._rows, []
        self._check(rows)

    def _check(self, rows: list[tuple[int, Any]]) -> None:
        if not rows:
            return
        expected = known.vectors([number for number, _ in rows])
        none = np.full(known.WIDTH, np.inf)
        got = np.stack([row if np.shape(row) == none.shape else none for _, row in rows])
        off = np.abs(got - expected).max(axis=1)
        with self._lock:
            self.counts["wrong"] += int((~(off < known.TOLERANCE)).sum())
            self.counts["checked"] += len(rows)

    def told(self) -> dict[str, Any]:
        """The counts, to be written as JSON."""
        with self._lock:
            return {**self.counts, "by_error": dict(self.errors), "unknown": self.unknown[:]}


class Numbers:
    """Which text comes next; ends after enough texts, once no more are wanted."""

    def __init__(self, first: int, least: int) -> None:
        self._next = itertools.count(first)
        self.least, self.out, self.stop = least, 0, False

    @property
    def over(self) -> bool:
        return self.stop and self.out >= self.least

    def take(self, count: int) -> list[int]:
        """The next texts; some are popular."""
        numbers = [next(self._next) for _ in range(count)]
        self.out += count
        return [number if number % SHARED else number // SHARED % POPULAR for number in numbers]
