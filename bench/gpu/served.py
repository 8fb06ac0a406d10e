"""A real server on the device, against a bare loop: one text a call, streams, several front ends, int8."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.gpu import serving
from bench.gpu.devices import Row, proved
from bench.gpu.graphs import NAME
from bench.gpu.run import Run
from bench.gpu.sessions import Opened, tried
from bench.limit import cut

LIMITS = (32, 64, 128, 256, 512), (2048, 4096, 8192, 16384, 32768)  # texts and tokens of a batch
TINY_LIMITS = (8, 32), (512,)
BARE_TEXTS, TINY_TEXTS = 8192, 64
FEWEST = 64  # texts of a load
# The most that may be expected, to choose how many texts: calls a second of a front end, and in flight.
FRONT_END, IN_FLIGHT = 1300, 300
# Client, loads at a time, calls in flight for each. A stream sends ahead by itself.
LOADS = (("raw", 1, 1), ("raw", 8, 8), ("raw", 16, 16), ("stream", 1, 1024), ("stream", 4, 1024))
TINY_LOADS = (("raw", 1, 1), ("raw", 2, 8), ("stream", 1, 256))
FRONT_ENDS, TINY_FRONT_ENDS = (1, 4, 8), (1, 2)


def served(run: Run) -> Iterator[Row]:
    """For short and mixed texts: the bare loop, then a server with its default configuration under loads."""
    loads = TINY_LOADS if run.tiny else LOADS
    limits: dict[str, float] = {}
    for mix in ("short", "mixed"):
        row = tried({"row": f"{mix}, bare loop"}, partial(limit, run, mix, run.seconds / 12))
        limits[mix] = row.get("rate", 0.0)
        yield row
    with serving.server(run, "served") as server:
        for mix in limits:
            for kind, number, in_flight in loads:
                row = {"row": f"{mix}, {kind}", "loads": number, "in_flight": number * in_flight}
                texts = _texts(run, limits[mix], number, run.seconds / 20, in_flight)
                figures = partial(
                    serving.load, server, kind=kind, mix=mix, loads=number, texts=texts, in_flight=in_flight,
                    width=run.encoder.manifest.dimensions,
                )  # fmt: skip
                yield _of_limit(tried(row, figures), limits[mix])


def front_ends(run: Run) -> Iterator[Row]:
    """One text a call from many connections, by the number of front ends."""
    loads, in_flight = (2, 8) if run.tiny else (16, 16)
    rate = limit(run, "short", run.seconds / 12)["rate"]
    for number in TINY_FRONT_ENDS if run.tiny else FRONT_ENDS:
        row = {"row": f"{number} front ends", "loads": loads, "in_flight": loads * in_flight}
        yield _of_limit(tried(row, partial(_with, run, number, loads, in_flight, rate)), rate)


def _with(run: Run, number: int, loads: int, in_flight: int, rate: float) -> Row:
    with serving.server(run, f"front-ends-{number}", front_ends=number) as server:
        return serving.load(
            server, kind="raw", mix="short", loads=loads, in_flight=in_flight,
            texts=_texts(run, min(rate, FRONT_END * number), loads, run.seconds / 8, in_flight),
            width=run.encoder.manifest.dimensions,
        )  # fmt: skip


def int8(run: Run) -> Iterator[Row]:
    """A variant in static int8, served: refused, or how fast. Its products are made for CPUs."""
    yield tried({"row": f"{NAME} in int8, served"}, partial(_int8, run))


def _int8(run: Run) -> Row:
    nodes = Opened(run.graphs.path("int8"), run.device).nodes()
    with serving.server(run, "int8", repository=run.graphs.int8_repository) as server:
        loads, in_flight = (1, 32) if run.tiny else (4, 32)
        figures = serving.load(
            server, kind="raw", mix="short", loads=loads, in_flight=in_flight,
            texts=FEWEST if run.tiny else 512, width=run.encoder.manifest.dimensions,
        )  # fmt: skip
    return {**figures, "nodes": nodes.pop(run.device.provider, 0), "elsewhere": sum(nodes.values())}


def limit(run: Run, mix: str, seconds: float) -> Row:
    """The bare loop over texts that are known beforehand and sorted by length, in batches of the best size.

    `rate` includes tokenising, on all cores; `ready_rate` does not.
    """
    opened = Opened(run.graphs.path("fp32"), run.device)
    by_texts, by_tokens = TINY_LIMITS if run.tiny else LIMITS
    ways = {f"{size} texts": (size, 1 << 30) for size in by_texts}
    ways |= {f"{size} tokens": (1 << 30, size) for size in by_tokens}
    # So many that each way takes its share of the time.
    part = run.encoder.ids(data.mix(mix, TINY_TEXTS))
    guess = TINY_TEXTS / _loop(run, opened, [part], 0.0) * seconds / (2 * len(ways))
    texts = data.mix(mix, round(min(max(guess, TINY_TEXTS), TINY_TEXTS if run.tiny else BARE_TEXTS)))
    begun = time.perf_counter()
    ids = sorted(run.encoder.ids(texts), key=len)
    tokenising = time.perf_counter() - begun
    best, took = "", float("inf")
    for name, way in ways.items():
        spent = _loop(run, opened, [list(batch) for batch in cut(ids, *way)], seconds / len(ways))
        if spent < took:
            best, took = name, spent
    return {
        "rate": round(len(texts) / (took + tokenising), 1),
        "ready_rate": round(len(texts) / took, 1),
        "batches": best,
        "on": proved(opened.session, run.device),
    }


def _loop(run: Run, opened: Opened, batches: Sequence[list[NDArray[np.int32]]], seconds: float) -> float:
    """The seconds of the fastest pass over all batches, after one that allocates."""
    best, begun, passes = float("inf"), time.perf_counter(), 0
    while passes < 2 or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        for batch in batches:
            opened.run(run.encoder.feeds(batch))
        if passes:
            best = min(best, time.perf_counter() - started)
        passes += 1
    return best


def _texts(run: Run, rate: float, loads: int, seconds: float, in_flight: int) -> int:
    """Texts for each load, so that all of them take about so long, as far as there are texts."""
    if run.tiny:
        return FEWEST
    most = len(data.pairs()) // loads
    rate = min(rate, IN_FLIGHT * in_flight * loads)
    wanted = max(FEWEST, 8 * in_flight, round(rate * seconds / loads))
    return min(most, wanted)


def _of_limit(row: Row, limit: float) -> Row:
    return {**row, "of_limit": round(row["rate"] / limit, 3)} if limit and "rate" in row else row
