"""One, two and three threads that run batches of one session, as a server's workers do."""

import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.gpu.devices import Row, proved
from bench.gpu.run import Run
from bench.gpu.sessions import ENOUGH, Opened, tried

NUMBERS, TINY = (1, 2, 3), (1, 2)
BATCH = 32
TEXTS = 2048
Batch = Sequence[NDArray[np.int32]]


def workers(run: Run) -> Iterator[Row]:
    """A row for each precision, kind of text and number of threads, of one session."""
    precisions = ("fp32",) if run.tiny else ("fp32", "fp16")
    numbers = TINY if run.tiny else NUMBERS
    seconds = min(ENOUGH, 0.8 * run.seconds / (len(precisions) * 2 * len(numbers)))
    for precision in precisions:
        for mix in ("short", "mixed"):
            rates: dict[int, float] = {}
            for number in numbers:
                row = tried(
                    {"row": f"{precision} {mix}", "threads": number},
                    partial(measure, run, precision, mix, number, seconds),
                )
                if "rate" in row:
                    rates[number] = row["rate"]
                    row["ratio"] = round(row["rate"] / rates[min(rates)], 3)
                yield row


def measure(run: Run, precision: str, mix: str, number: int, seconds: float) -> Row:
    """Texts a second; every thread pads its own batches, and takes the next one when it is free."""
    ids = sorted(run.encoder.ids(data.mix(mix, 2 * BATCH if run.tiny else TEXTS)), key=len)
    batches = [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]
    opened = Opened(run.graphs.path(precision), run.device)
    for batch in batches:
        opened.run(run.encoder.feeds(batch))
    threads = _Threads(run, opened, batches, number)
    texts, took = threads.work(seconds)
    return {"rate": round(texts / took, 1), "on": proved(opened.session, run.device)}


class _Threads:
    """Threads that take the next batch in turns, and end after a whole pass over all batches: they are sorted
    by length, so a part of a pass would be of shorter texts."""

    def __init__(self, run: Run, opened: Opened, batches: Sequence[Batch], number: int) -> None:
        self._run, self._opened, self._batches = run, opened, batches
        self._lock = threading.Lock()
        self._next = self._texts = 0
        self._until, self._over = 0.0, False
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._one) for _ in range(number)]

    def work(self, seconds: float) -> tuple[int, float]:
        """How many texts were computed, and in how many seconds."""
        begun = time.perf_counter()
        self._until = begun + seconds
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        return self._texts, time.perf_counter() - begun

    def _one(self) -> None:
        try:
            while True:
                with self._lock:
                    place = self._next % len(self._batches)
                    if self._next and not place and time.perf_counter() >= self._until:
                        self._over = True
                    if self._over:
                        return
                    batch = self._batches[place]
                    self._next += 1
                self._opened.run(self._run.encoder.feeds(batch))
                with self._lock:
                    self._texts += len(batch)
        except BaseException as error:
            self._errors.append(error)
