"""What a run of a graph costs on a device: measured while it warms up, and fitted to four figures."""

import hashlib
import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from trimtab_server.engine.batch import Payload
from trimtab_server.engine.queue.cost import LEAST, Cost

log = logging.getLogger(__name__)

# Runs a batch; makes an item of so many units, or as many as the graph takes.
Run: TypeAlias = Callable[[Sequence[Payload]], object]
Sample: TypeAlias = Callable[[int], Payload]

# Batches to measure, by the units of their items: alone, alike, and long beside short.
SHAPES = ([8], [32], [128], [256], [8] * 8, [32] * 4, [128] * 2, [64] + [8] * 7, [128] + [8] * 7)
RUNS = 3
# A device that runs all of them faster than this is also measured on more items at once.
SECONDS = 0.03
MOST_ITEMS = 256
# The batch that checks whether an earlier cost still holds, and the factor by which it may differ.
CHECK = [32] * 4
CHECK_FACTOR = 2.0


def measure(run: Run, sample: Sample) -> Cost:
    """Warm a graph up, and fit its cost to the median times of batches of many shapes."""
    samples: list[tuple[list[int], float]] = []
    factor = 1
    while True:
        slowest = 0.0
        for shape in SHAPES:
            payloads = list(map(sample, shape)) * factor
            seconds = _median_seconds(run, payloads)
            samples.append(([payload.units for payload in payloads], seconds))
            slowest = max(slowest, seconds)
        factor *= 4
        if slowest > SECONDS or 8 * factor > MOST_ITEMS:
            return fit(samples)


class CostCache:
    """Costs measured at earlier starts, one file each in `folder`, which make a start shorter.

    Files are named by the graph's content, the device and the runtime, so that none is mistaken for
    another's. If the folder cannot be read or written, costs are measured again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def measure(self, run: Run, sample: Sample, *of: str) -> Cost:
        """As `measure`, or its earlier result for the same `of`, if a run of CHECK confirms that."""
        path = self._folder / f"{hashlib.sha256(repr(of).encode()).hexdigest()[:32]}.json"
        cost = _read(path)
        if cost is not None:
            for shape in SHAPES:  # the first run of a shape allocates
                run(list(map(sample, shape)))
            payloads = list(map(sample, CHECK))
            seconds = _median_seconds(run, payloads)
            units = [payload.units for payload in payloads]
            predicted = cost.seconds(len(units), sum(units), max(units))
            if predicted / CHECK_FACTOR < seconds < predicted * CHECK_FACTOR:
                return cost
        cost = measure(run, sample)
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


def _median_seconds(run: Run, payloads: Sequence[Payload]) -> float:
    times = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        run(payloads)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])  # the first run of a shape allocates


def fit(samples: Sequence[tuple[Sequence[int], float]]) -> Cost:
    """The cost nearest to measured (units, seconds), by least squares of the relative error.

    A figure that would be negative is noise around zero, and left out.
    """
    rows = []
    for units, seconds in samples:
        positions = len(units) * max(units)
        row = [1.0, sum(units), positions - sum(units), positions * max(units)]
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
    run, unit, pad, pair = (float(figure) for figure in figures)
    return Cost(max(run, LEAST), max(unit, LEAST), pad, pair)
