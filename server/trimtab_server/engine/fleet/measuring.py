"""What a run of a graph costs on a device: measured while it warms up, and fitted to four figures."""

import hashlib
import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np

from trimtab_server.engine.batch import Ids
from trimtab_server.engine.queue.cost import LEAST, Cost

log = logging.getLogger(__name__)

# Batches to measure, by the lengths of their texts: alone, alike, and long beside short.
SHAPES = ([8], [32], [128], [256], [8] * 8, [32] * 4, [128] * 2, [64] + [8] * 7, [128] + [8] * 7)
RUNS = 3
# A device that does all of them faster than this is measured on more texts at once, too.
SECONDS = 0.03
MOST_TEXTS = 256
# A batch that tells whether a cost measured earlier still holds, and by how much it may differ.
CHECK = [32] * 4
CHECK_FACTOR = 2.0


def measure(run: Callable[[Sequence[Ids]], object], pad_id: int, max_tokens: int) -> Cost:
    """Warm a graph up, and fit its cost to the median times of batches of many shapes."""
    samples: list[tuple[list[int], float]] = []
    factor = 1
    while True:
        slowest = 0.0
        for shape in SHAPES:
            lengths = [min(length, max_tokens) for length in shape] * factor
            ids = [np.full(length, pad_id, np.int32) for length in lengths]
            seconds = _median_seconds(run, ids)
            samples.append((lengths, seconds))
            slowest = max(slowest, seconds)
        factor *= 4
        if slowest > SECONDS or 8 * factor > MOST_TEXTS:
            return fit(samples)


class Measured:
    """Costs measured at earlier starts, one file each in `folder`: a start is that much shorter.

    They are named by the graph's content, the device and the runtime, so that none is taken for another's.
    A folder that cannot be read or written is no fault: the cost is measured again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def measure(self, run: Callable[[Sequence[Ids]], object], pad_id: int, max_tokens: int, *of: str) -> Cost:
        """As `measure`, or what it said earlier for the same `of`, where a run of CHECK confirms it."""
        path = self._folder / f"{hashlib.sha256(repr(of).encode()).hexdigest()[:32]}.json"
        cost = _read(path)
        if cost is not None:
            for shape in SHAPES:  # the first run of a shape allocates
                run([np.full(min(length, max_tokens), pad_id, np.int32) for length in shape])
            lengths = [min(length, max_tokens) for length in CHECK]
            seconds = _median_seconds(run, [np.full(length, pad_id, np.int32) for length in lengths])
            predicted = cost.seconds(len(lengths), sum(lengths), max(lengths))
            if predicted / CHECK_FACTOR < seconds < predicted * CHECK_FACTOR:
                return cost
        cost = measure(run, pad_id, max_tokens)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(asdict(cost)))
            partial.rename(path)
        except OSError as error:
            log.info("the measured cost is not kept: %s", error)
        return cost


def _read(path: Path) -> Cost | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Cost)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _median_seconds(run: Callable[[Sequence[Ids]], object], ids: Sequence[Ids]) -> float:
    times = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        run(ids)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])  # the first run of a shape allocates


def fit(samples: Sequence[tuple[Sequence[int], float]]) -> Cost:
    """The cost nearest to measured (lengths, seconds), by least squares of the relative error.

    No figure may be negative: one that comes out so is noise around nothing, and left out.
    """
    rows = []
    for lengths, seconds in samples:
        positions = len(lengths) * max(lengths)
        row = [1.0, sum(lengths), positions - sum(lengths), positions * max(lengths)]
        rows.append([each / seconds for each in row])
    matrix = np.array(rows)
    # Brought to one scale first: a pair's seconds are a millionth of a run's.
    scale = np.maximum(matrix.max(axis=0), 1e-30)
    used = [column for column in range(4) if matrix[:, column].any()]
    figures = np.zeros(4)
    while used:
        solution = np.linalg.lstsq(matrix[:, used] / scale[used], np.ones(len(rows)), rcond=None)[0]
        if solution.min() >= 0:
            figures[used] = solution / scale[used]
            break
        used.pop(int(solution.argmin()))
    run, token, pad, pair = (float(figure) for figure in figures)
    return Cost(max(run, LEAST), max(token, LEAST), pad, pair)
