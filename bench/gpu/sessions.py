"""Graphs in ONNX Runtime on the measured device, texts as their inputs, and time."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import tokenizers
from numpy.typing import NDArray

from bench.gpu import devices
from bench.gpu.devices import Device, Row
from trimtab.artifacts import bundle as bundles
from trimtab.inputs import text as inputs
from trimtab_server.engine.runners import runtime

OUTPUT = "embeddings"
ENOUGH = 3.0  # seconds
Feeds = Mapping[str, NDArray[np.int64]]
Vectors = NDArray[np.float32]


class Opened:
    """A graph's session with the server's options. `on`: the provider that it got.

    FellBackError if that is another than the device's; a run that fails there fails, and never moves to the
    CPU, which ONNX Runtime would do by itself.

    Args:
        options: further ones of the provider.
        sizes: the sizes of the inputs' axes, by name, where these are fixed.
    """

    def __init__(
        self,
        graph: Path,
        device: Device,
        options: Mapping[str, str] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        settings = runtime.options()
        settings.enable_mem_pattern = False
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for name, size in (sizes or {}).items():
            settings.add_free_dimension_override_by_name(name, size)
        begun = time.perf_counter()
        self.session = ort.InferenceSession(
            str(graph), settings, providers=device.settings(options or {}), enable_fallback=0
        )
        self.seconds = time.perf_counter() - begun
        self.graph, self.device = graph, device
        self.on = devices.proved(self.session, device)
        self.names = [each.name for each in self.session.get_inputs()]

    def nodes(self) -> dict[str, int]:
        """How many nodes each provider got, before they were fused."""
        counts: Counter[str] = Counter()
        for part in self.session.get_provider_graph_assignment_info():
            counts[part.ep_name] += len(part.get_nodes())
        return dict(counts)

    def run(self, feeds: Feeds) -> Vectors:
        """The vectors of a padded batch: float32 (n, width)."""
        given = {name: feeds[name] for name in self.names}
        vectors: Vectors = self.session.run([OUTPUT], given)[0]
        return vectors

    def vectors(self, encoder: "Encoder", ids: Sequence[NDArray[np.int32]], size: int) -> Vectors:
        """The vectors of texts, in batches of `size` in their order."""
        starts = range(0, len(ids), size)
        return np.concatenate([self.run(encoder.feeds(ids[start : start + size])) for start in starts])


class Encoder:
    """The tokenizer of a bundle."""

    def __init__(self, folder: Path) -> None:
        bundle = bundles.read(folder)
        self.manifest = bundle.manifest
        self._tokenizer = tokenizers.Tokenizer.from_file(str(bundle.file(self.manifest.tokenizer)))
        self._tokenizer.enable_truncation(self.manifest.max_tokens)

    def ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The token ids of each text."""
        return [np.array(each.ids, np.int32) for each in self._tokenizer.encode_batch(texts)]

    def feeds(self, ids: Sequence[NDArray[np.int32]], width: int = 0) -> Feeds:
        """A batch of texts, padded to the longest, or to `width` if that is more."""
        made = inputs.feeds(ids, self.manifest.pad_id, inputs.TokenTypes())
        more = max(0, width - made["input_ids"].shape[1])
        fill = {"input_ids": self.manifest.pad_id}
        return {
            name: np.pad(each, ((0, 0), (0, more)), constant_values=fill.get(name, 0))
            for name, each in made.items()
        }


def cosines(one: Vectors, other: Vectors) -> Vectors:
    """Row by row."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: Vectors = (one * other).sum(axis=1) / np.maximum(lengths, 1e-12)
    return found


def timed(act: Callable[[], object], seconds: float, least: int = 5) -> list[float]:
    """How long each call takes, in seconds, for so many seconds, and at most ENOUGH; the first call, which
    allocates, is left out."""
    act()
    times: list[float] = []
    while len(times) < least or sum(times) < min(seconds, ENOUGH):
        begun = time.perf_counter()
        act()
        times.append(time.perf_counter() - begun)
    return times


def milliseconds(times: Sequence[float]) -> Row:
    """The median and the 99th percentile."""
    return {
        "p50_ms": round(statistics.median(times) * 1e3, 4),
        "p99_ms": round(float(np.percentile(times, 99)) * 1e3, 4),
    }


def tried(row: Row, measure: Callable[[], Row]) -> Row:
    """A row with what was measured, or with the reason why it was not: other rows go on."""
    try:
        return {**row, **measure()}
    except Exception as error:
        return {**row, "reason": reason(error)}


def reason(error: BaseException) -> str:
    """Why there is no figure, in a line."""
    return f"{type(error).__name__}: {runtime.told(error)}"
