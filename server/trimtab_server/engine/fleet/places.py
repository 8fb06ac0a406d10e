"""Places where sessions live, as the configuration names them."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from trimtab.errors import ConfigError
from trimtab_server.engine.fleet import cores
from trimtab_server.engine.runners.onnx import PROVIDERS

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
            # One core is left to the event loop and the tokenizers, if there are several.
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


def hardware(place: Place) -> str:
    """The model of the place's CPU or NVIDIA GPU, as far as Linux tells."""
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
