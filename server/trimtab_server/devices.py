"""Places where sessions live, and devices: a place with the sessions of all loaded models."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from trimtab.errors import ConfigError
from trimtab_server import cores
from trimtab_server.batch import Ids, Model
from trimtab_server.cost import Cost, Measured, measure
from trimtab_server.session import PROVIDERS, OrtSession, Session

Open = Callable[[Model, "Place"], Session]

# The length of the text that a device is probed with.
PROBE_TOKENS = 8
DEV = Path("/dev")


@dataclass(frozen=True, slots=True)
class Place:
    """Where sessions live: a kind of device, which one, and the cores of its workers (None: any core)."""

    kind: str
    index: int
    workers: int
    cores: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.kind != "cpu":
            return f"{self.kind}:{self.index}"
        if not self.cores:
            return self.kind
        first, last = self.cores[0], self.cores[-1]
        return f"cpu:{first}" if first == last else f"cpu:{first}-{last}"


def parse(names: tuple[str, ...]) -> list[Place]:
    """The places that `devices` of the configuration names; ConfigError names what is not understood."""
    places = [_auto() if name == "auto" else _parse(name) for name in names]
    for name, times in Counter(map(str, places)).items():
        if times > 1:
            raise ConfigError(f"devices names {name} {times} times: name each device once")
    return places


def _auto() -> Place:
    # The provider says only what ONNX Runtime was built for; the device file, that there is a GPU to run on.
    if "CUDAExecutionProvider" in ort.get_available_providers() and any(DEV.glob("nvidia[0-9]*")):
        return Place("cuda", 0, workers=2)
    return _parse("cpu")


def _parse(name: str) -> Place:
    kind, _, which = name.partition(":")
    if kind not in PROVIDERS:
        raise ConfigError(
            f"device {name!r} is not known; use 'auto', 'cpu', 'cpu:0-3', 'cuda:0' or 'tensorrt:0'"
        )
    if kind == "cpu":
        if not which:
            # One core is left to the event loop and the tokenizers, where there is one to leave.
            return Place("cpu", 0, workers=max(1, cores.usable() - 1))
        available, chosen = cores.available(), _range(name, which)
        absent = [core for core in chosen if core not in available]
        if absent:
            raise ConfigError(
                f"device {name!r}: core {absent[0]} is not available; this process has {available}"
            )
        return Place("cpu", 0, workers=len(chosen), cores=chosen)
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


class Device:
    """One place: a session for each loaded model, and threads to run them on."""

    def __init__(self, place: Place, open_session: Open, measured: Measured | None = None) -> None:
        self.place = place
        self.name = str(place)
        self.costs: dict[Model, Cost] = {}  # of the models that are loaded here
        self._open = open_session
        self._measured = measured
        self._sessions: dict[Model, Session] = {}

    def load(self, model: Model) -> None:
        """Open a session, warm it and measure its cost. Blocks; call it off the event loop."""
        session = self._open(model, self.place)
        if self._measured is None:
            cost = measure(session.run, model.pad_id, model.max_tokens)
        else:
            cost = self._measured.measure(
                session.run, model.pad_id, model.max_tokens,
                model.digest, self.place.kind, hardware(self.place), ort.__version__,
            )  # fmt: skip
        self._sessions[model] = session
        self.costs[model] = cost

    def unload(self, model: Model) -> None:
        """Forget a model; no batch of it may come any more."""
        self.costs.pop(model, None)
        self._sessions.pop(model, None)

    def start(self, work: Callable[[], None]) -> list[threading.Thread]:
        """Start `work` on a thread for each of the place's workers."""

        def pinned(core: int | None) -> None:
            if core is not None:
                os.sched_setaffinity(0, {core})  # of this thread alone
            work()

        threads = []
        for number in range(self.place.workers):
            core = self.place.cores[number] if self.place.cores else None
            # A daemon, because a run that hangs would keep the process from ending.
            threads.append(
                threading.Thread(target=pinned, args=(core,), name=f"{self.name}-{number}", daemon=True)
            )
            threads[-1].start()
        return threads

    def run(self, model: Model, ids: Sequence[Ids]) -> NDArray[np.float32] | Exception:
        """The vectors of texts, or what their run has raised: that is for the caller to judge."""
        try:
            vectors = self._sessions[model].run(ids)
        except Exception as error:
            return error
        expected = (len(ids), model.dimensions)
        if vectors.shape != expected:
            return ValueError(f"the graph gave vectors of shape {vectors.shape} instead of {expected}")
        return vectors

    def probe(self, model: Model) -> Exception | None:
        """What is wrong with this device, if anything: run a text that it has run while it warmed up."""
        outcome = self.run(model, [np.full(min(PROBE_TOKENS, model.max_tokens), model.pad_id, np.int32)])
        return outcome if isinstance(outcome, Exception) else None

    def recover(self, models: Iterable[Model]) -> Exception | None:
        """Load what was loaded elsewhere while this device was out of service, and probe every model."""
        for model in models:
            try:
                if model not in self.costs:
                    self.load(model)
            except Exception as error:
                return error
            wrong = self.probe(model)
            if wrong is not None:
                return wrong
        return None


def hardware(place: Place) -> str:
    """What the place is made of, so far as Linux tells: the model of the CPU, or of the NVIDIA GPU."""
    if place.kind == "cpu":
        path, key = Path("/proc/cpuinfo"), "model name"
    else:
        boards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        path, key = (boards[place.index] if place.index < len(boards) else Path("/dev/null")), "Model"
    try:
        lines = path.read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def open_ort(model: Model, place: Place) -> Session:
    """The real thing: an ONNX Runtime session at a place."""
    return OrtSession(model, place.kind, place.index)
