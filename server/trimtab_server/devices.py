"""Devices, and the worker threads that feed them. A worker takes a batch whenever it is free."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from trimtab.errors import ConfigError
from trimtab_server.batch import Batch, Model
from trimtab_server.cost import Cost, measure
from trimtab_server.session import PROVIDERS, OrtSession, Session

Open = Callable[[Model, "Place"], Session]


@dataclass(frozen=True, slots=True)
class Place:
    """Where sessions live: a kind of device, which one, and the cores of its workers (None: any core)."""

    kind: str
    index: int
    workers: int
    cores: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


def parse(names: tuple[str, ...]) -> list[Place]:
    """The places that `devices` of the configuration names; ConfigError names what is not understood."""
    return [_auto() if name == "auto" else _parse(name) for name in names]


def _auto() -> Place:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        return Place("cuda", 0, workers=2)
    return _parse("cpu")


def _parse(name: str) -> Place:
    kind, _, which = name.partition(":")
    if kind not in PROVIDERS:
        raise ConfigError(
            f"device {name!r} is not known; use 'auto', 'cpu', 'cpu:0-3', 'cuda:0' or 'tensorrt:0'"
        )
    if kind == "cpu":
        available = sorted(os.sched_getaffinity(0))
        if not which:
            # One core is left to the event loop and the tokenizers, where there is one to leave.
            return Place("cpu", 0, workers=max(1, len(available) - 1))
        cores = _range(name, which)
        absent = [core for core in cores if core not in available]
        if absent:
            raise ConfigError(
                f"device {name!r}: core {absent[0]} is not available; this process has {available}"
            )
        return Place("cpu", 0, workers=len(cores), cores=cores)
    indices = _range(name, which or "0")
    if len(indices) != 1:
        raise ConfigError(f"device {name!r}: name each GPU by itself, such as '{kind}:0', '{kind}:1'")
    # Two workers a GPU: while one runs, the other prepares its batch.
    return Place(kind, indices[0], workers=2)


def _range(name: str, which: str) -> tuple[int, ...]:
    first, _, last = which.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) < int(first):
        raise ConfigError(f"device {name!r}: {which!r} is neither a number nor a range such as 0-3")
    return tuple(range(int(first), int(last or first) + 1))


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a batch on a device: vectors, float32 (n, dimensions), or an error; and the seconds."""

    batch: Batch
    device: str
    outcome: NDArray[np.float32] | Exception
    seconds: float


class Device:
    """One place: a session for each loaded model, and the workers that run them."""

    def __init__(self, place: Place, open_session: Open) -> None:
        self.place = place
        self.name = str(place)
        self._open = open_session
        self._sessions: dict[Model, Session] = {}
        self._threads: list[threading.Thread] = []

    def load(self, model: Model) -> Cost:
        """Open and warm a session, and return its measured cost. Blocks; call it off the event loop."""
        session = self._open(model, self.place)
        cost = measure(session.run, model.pad_id, model.max_tokens)
        self._sessions[model] = session
        return cost

    def unload(self, model: Model) -> None:
        """Forget a model; no batch of it may come any more."""
        self._sessions.pop(model, None)

    def start(
        self,
        take: Callable[[], Batch | None],
        done: Callable[[Batch, list[Run]], None],
    ) -> None:
        """Start the workers.

        `take` blocks for the next batch (None: stop); `done` gets it back with the runs it became.
        """

        def work(core: int | None) -> None:
            if core is not None:
                os.sched_setaffinity(0, {core})  # of this thread alone
            while (batch := take()) is not None:
                done(batch, list(self._runs(batch)))

        for number in range(self.place.workers):
            core = self.place.cores[number] if self.place.cores else None
            thread = threading.Thread(target=work, args=(core,), name=f"{self.name}-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def join(self) -> None:
        """Wait until every worker has stopped."""
        for thread in self._threads:
            thread.join()

    def _runs(self, batch: Batch) -> Iterator[Run]:
        """Run a batch; where that fails, its halves: in the end only items that fail alone have failed."""
        begun = time.perf_counter()
        outcome = self._run(batch)
        if isinstance(outcome, Exception) and len(batch.items) > 1:
            half = len(batch.items) // 2
            for items in (batch.items[:half], batch.items[half:]):
                yield from self._runs(Batch(batch.model, items))
        else:
            yield Run(batch, self.name, outcome, time.perf_counter() - begun)

    def _run(self, batch: Batch) -> NDArray[np.float32] | Exception:
        # Whatever a run raises belongs to this batch: the worker lives on.
        try:
            vectors = self._sessions[batch.model].run([item.ids for item in batch.items])
        except Exception as error:
            return error
        expected = (len(batch.items), batch.model.dimensions)
        if vectors.shape != expected:
            return ValueError(f"the graph gave vectors of shape {vectors.shape} instead of {expected}")
        return vectors


def open_ort(model: Model, place: Place) -> Session:
    """The real thing: an ONNX Runtime session at a place."""
    return OrtSession(model, place.kind, place.index)
