"""What an adapter adds to a query, in us of CPU time per text, by kind of map, batching and where it runs.

    python -m bench.adapter_cost models/all-minilm-l6-v2/1

The encoder embeds Debian's short descriptions, and maps of the sizes that the ladder makes are applied to its
rows. Their weights are random, which costs the same. Everything runs on one thread.

encode     the encoder's own run: one text, and a batch of 32
session    the map's run for one row, right after a run of the encoder has filled the caches with its own
           weights; and for the 32 rows of a batch together
each       32 requests of one row: their maps run one by one on the event loop
together   the same requests, in one run for all rows, as the server does it (applying.py)
thread     the same requests, each handed to a thread
folded     the map as one more output of the encoder's graph: the extra time of a run
server     through the SDK and a real server, one call at a time: the extra time of a call that names the
           space over one that does not

Figures are medians of CPU time, which other load disturbs least. They are kept in
bench/history/adapter_cost.jsonl.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tokenizers
from numpy.typing import NDArray
from onnx import compose
from prometheus_client import CollectorRegistry

import trimtab
from bench import data, processes, report
from tests import adapters_made as made
from trimtab.artifacts.bundle import Bundle
from trimtab.values.column import Column
from trimtab_export.adapters import maps
from trimtab_export.adapters.maps import Hidden, Map
from trimtab_server.spaces.adapters import Adapters
from trimtab_server.spaces.applying import Applier
from trimtab_server.spaces.route import LoadedAdapter, Route
from trimtab_server.spaces.watching import DriftMonitor

BATCH = 32
HIDDEN = 1024
TURNS = 4
Figures = dict[str, float]


class EncoderGraph:
    """A graph of an encoder in ONNX Runtime, on one thread."""

    def __init__(self, path: Path, inputs: Sequence[str]) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        self._session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self._inputs = inputs

    def run(self, batch: Sequence[list[int]]) -> None:
        """All outputs for these texts."""
        ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
        mask = np.zeros_like(ids)
        for row, each in enumerate(batch):
            ids[row, : len(each)], mask[row, : len(each)] = each, 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        self._session.run(None, {name: feeds[name] for name in self._inputs})


def kinds(width: int, states: int) -> dict[str, Map]:
    """Maps as the ladder makes them, with random weights."""
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> NDArray[np.float32]:
        drawn: NDArray[np.float64] = rng.normal(size=shape) / shape[0] ** 0.5
        return drawn.astype(np.float32)

    plain: dict[str, Any] = {
        "width": width, "first": 0, "last": width, "unit_input": True, "unit_output": True,
        "shift": matrix(width),
    }  # fmt: skip
    hidden = Hidden(matrix(width, HIDDEN), matrix(HIDDEN), matrix(HIDDEN, width))
    found = {
        "mean-shift": Map(**plain),
        "ridge": Map(**plain, weight=matrix(width, width)),
        "mlp": Map(**plain, weight=matrix(width, width), hidden=hidden),
    }
    if states:
        wide = {**plain, "width": width + states, "last": width + states, "unit_input": False}
        found["inner-head"] = Map(**wide, weight=matrix(width + states, width))
    return found


def repository(source: Path, folder: Path) -> tuple[Bundle, dict[str, str]]:
    """A repository of the encoder with an adapter of each kind, and the space that each kind maps to."""
    bundle = made.copied(source, folder)
    manifest = bundle.manifest
    states = manifest.variants[0].states
    spaces = {}
    for number, (kind, map) in enumerate(kinds(manifest.dimensions, states.width if states else 0).items()):
        maps.write(map, folder / "map.onnx")
        spaces[kind] = f"{number:016x}"
        made.adapter(
            folder, kind, made.end(manifest), made.end(manifest, encoder="old", space=spaces[kind]),
            onnx.load(folder / "map.onnx"),
            reads="states" if map.width > manifest.dimensions else "embeddings",
        )  # fmt: skip
    return bundle, spaces


def timed(run: Callable[[], object], times: int, before: Callable[[], object] = lambda: None) -> float:
    """Median microseconds of a run; `before` is called before each run and not counted."""
    taken = []
    for _ in range(times):
        before()
        begun = time.thread_time()
        run()
        taken.append(time.thread_time() - begun)
    return statistics.median(taken) * 1e6


def sessions(
    bundle: Bundle, loaded: Sequence[LoadedAdapter], ids: Sequence[list[int]], times: int
) -> list[Figures]:
    """The encoder's figures, then those of each adapter."""
    manifest, variant = bundle.manifest, bundle.manifest.variants[0]
    graph = EncoderGraph(bundle.file(variant.files[0]), variant.inputs)
    batches = [list(ids[start : start + BATCH]) for start in range(0, len(ids) - BATCH + 1, BATCH)]
    turns = iter(range(1 << 30))

    def one() -> None:
        graph.run([ids[next(turns) % len(ids)]])

    def many() -> None:
        graph.run(batches[next(turns) % len(batches)])

    found = [{"encode 1": timed(one, times), "encode 32": timed(many, times // 4) / BATCH}]
    for each in loaded:
        rows = np.random.default_rng(1).normal(size=(BATCH, manifest.dimensions + each.states_width))
        vectors, groups = rows.astype(np.float32), [""] * BATCH

        alone, batched = partial(each.run, vectors[:1], groups[:1]), partial(each.run, vectors, groups)
        figures = {"session 1": timed(alone, times, one), "session 32": timed(batched, times, many) / BATCH}
        figures |= asyncio.run(ways(each, vectors, times))
        if not each.states_width:  # with states, the graph is a different one already
            both = folded(bundle, each)
            for name, batch in (("folded 1", [ids[0]]), ("folded 32", batches[0])):
                more = [
                    timed(partial(both.run, batch), 1) - timed(partial(graph.run, batch), 1)
                    for _ in range(times)
                ]
                figures[name] = statistics.median(more) / len(batch)
        found.append(figures)
    return found


async def ways(loaded: LoadedAdapter, vectors: NDArray[np.float32], times: int) -> Figures:
    """32 requests of one row, in each of three ways; asyncio's own cost of 32 tasks is subtracted."""
    applier, source = Applier(), loaded.manifest.source.dimensions
    route = Route(
        "there", (loaded,), vectors.shape[1] - loaded.states_width, None, True, None, loaded.encoder, 1
    )

    async def nothing(row: NDArray[np.float32]) -> None:
        pass

    async def each(row: NDArray[np.float32]) -> None:
        loaded.run(row, [""])

    async def together(row: NDArray[np.float32]) -> None:
        dense, states = np.split(row, [source], axis=1)
        await applier.apply(route, {"dense": Column(dense), "states": Column(states)}, "dense", "")

    async def thread(row: NDArray[np.float32]) -> None:
        await asyncio.to_thread(loaded.run, row, [""])

    taken: dict[str, list[float]] = {}
    for _ in range(times):
        for way in (nothing, each, together, thread):
            begun = time.process_time()
            await asyncio.gather(*(way(row) for row in np.split(vectors, len(vectors))))
            taken.setdefault(way.__name__, []).append((time.process_time() - begun) / len(vectors) * 1e6)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    tasks = medians.pop("nothing")
    return {name: value - tasks for name, value in medians.items()}


def folded(bundle: Bundle, loaded: LoadedAdapter) -> EncoderGraph:
    """The encoder's graph with the adapter's appended."""
    variant = bundle.manifest.variants[0]
    path = bundle.file(variant.files[0])
    encoder = onnx.load(path, load_external_data=False)
    adapter = bundle.path.parent / "adapters" / loaded.manifest.name / "adapter.onnx"
    map = compose.add_prefix(onnx.load(adapter), "map/")
    for node in map.graph.node:
        node.input[:] = ["embeddings" if name == "map/vectors" else name for name in node.input]
    encoder.graph.node.extend(map.graph.node)
    encoder.graph.initializer.extend(map.graph.initializer)
    encoder.graph.output.extend(map.graph.output)
    whole = path.with_name("folded.onnx")
    onnx.save(encoder, whole)
    try:
        return EncoderGraph(whole, variant.inputs)
    finally:
        whole.unlink()


def server(folder: Path, spaces: dict[str, str], texts: Sequence[str]) -> dict[str, Figures]:
    """One call at a time through a real server, alternately with and without a space."""
    found = {}
    with (
        processes.trimtab(folder, processes.cores().server) as running,
        trimtab.Client(running.url) as client,
    ):
        for kind, space in spaces.items():
            spent = dict.fromkeys(("", space), 0.0)
            for _ in range(TURNS):
                for wanted in spent:
                    before = running.cpu_seconds()
                    for text in texts:
                        client.embed([text], space=wanted, timeout=60)
                    spent[wanted] += running.cpu_seconds() - before
            found[kind] = {"server 1": (spent[space] - spent[""]) / (TURNS * len(texts)) * 1e6}
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--times", type=int, default=200)
    options = parser.parse_args()
    texts = data.mix("short", 400)
    with tempfile.TemporaryDirectory(dir=options.bundle.resolve().parent) as name:
        folder = Path(name)
        bundle, spaces = repository(options.bundle, folder)
        tokenizer = tokenizers.Tokenizer.from_file(str(bundle.file(bundle.manifest.tokenizer)))
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        loaded = asyncio.run(Adapters(DriftMonitor(CollectorRegistry())).read(folder, bundle.manifest.name))
        encoder, *figures = sessions(bundle, loaded, ids, options.times)
        rows = {each.manifest.name: found for each, found in zip(loaded, figures, strict=True)}
        for kind, found in server(folder, spaces, texts[: options.times]).items():
            rows[kind] |= found
    print(f"{'':<12}" + "".join(f"{name:>12}" for name in encoder))
    print(f"{'encoder':<12}" + "".join(f"{value:12.1f}" for value in encoder.values()))
    names = ["session 1", "session 32", "each", "together", "thread", "folded 1", "folded 32", "server 1"]
    print(f"{'':<12}" + "".join(f"{name:>12}" for name in names) + "    together / encode 32")
    for kind, found in rows.items():
        cells = "".join(f"{found[name]:12.1f}" if name in found else f"{'':>12}" for name in names)
        print(f"{kind:<12}{cells}{found['together'] / encoder['encode 32']:12.2%}")
    report.append("adapter_cost", rows={"encoder": encoder, **rows})


if __name__ == "__main__":
    main()
