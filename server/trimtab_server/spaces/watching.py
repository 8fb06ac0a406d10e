"""Tells whether each adapter's live queries drift, on a separate thread.

Requests only hand over their rows. How many rows wait is bounded, and so is the work: of an adapter that is
used often, only a sample is looked at.
"""

import logging
import queue
import threading
import time
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge

from trimtab_server.spaces.drift import Baseline, Drift, DriftReport

log = logging.getLogger(__name__)

# Queries of one adapter that are looked at: a rate a second, and a burst after a quiet time. Each costs about
# 2 MFLOP.
RATE = 50.0
BURST = 1000.0
# Requests whose rows may wait for the thread; more are not looked at.
MOST_WAITING = 256
# How long `stop` waits for the thread.
STOP_SECONDS = 1.0

_LABELS = ("encoder", "version", "adapter")

Rows: TypeAlias = NDArray[np.float32]


class Watched:
    """An adapter whose live queries are watched: made by DriftMonitor.open, called by the event loop."""

    def __init__(self, monitor: "DriftMonitor", labels: tuple[str, str, str], baseline: Baseline) -> None:
        self.labels = labels
        self.drift = Drift(baseline)  # the thread's
        self._monitor = monitor
        self._dimensions = baseline.dimensions
        self._allowance = BURST
        self._refilled = time.monotonic()

    def see(self, rows: Rows) -> None:
        """Hand over live queries of the adapter: rows in its source space, float32 (n, d) or wider."""
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._refilled) * RATE)
        self._refilled = now
        allowed = min(len(rows), int(self._allowance))
        if allowed and self._monitor.take(self, rows[:allowed, : self._dimensions]):
            self._allowance -= allowed

    def close(self) -> None:
        """The adapter is no longer used: remove its gauges."""
        self._monitor.close(self)


class DriftMonitor:
    """The thread, and the gauges."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"trimtab_query_{name}", what, _LABELS, registry=registry)

        def counter(name: str, what: str) -> Counter:
            return Counter(f"trimtab_query_{name}", what, _LABELS, registry=registry)

        self._depth = gauge(
            "depth_z",
            "How much less deep the last window of live queries lies among an adapter's calibration queries: "
            "rank-sum test, in standard errors",
        )
        self._distance = gauge(
            "distance_z",
            "How much further the last window of live queries is from the nearest calibration query than "
            "these are from one another: rank-sum test, in standard errors",
        )
        self._nearest = gauge(
            "distance", "1 - cosine to the nearest calibration query, the median of the last window"
        )
        self._alarm = gauge(
            "drift_alarm", "1 where the last window of live queries is unlike the calibration queries"
        )
        self._windows = counter("drift_windows", "Windows of live queries that were judged")
        self._alarms = counter("drift_alarms", "Windows of live queries unlike the calibration queries")
        self._lock = threading.Lock()
        self._open: set[Watched] = set()
        self._queue: queue.SimpleQueue[tuple[Watched, Rows] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="query-drift", daemon=True)
        self._thread.start()

    def open(self, encoder: str, version: int, adapter: str, queries: NDArray[np.floating]) -> Watched:
        """Watch an adapter that was judged on these queries, (m, d). AdapterError if they are too few."""
        watched = Watched(self, (encoder, str(version), adapter), Baseline(queries))
        with self._lock:
            self._open.add(watched)
        return watched

    def take(self, watched: Watched, rows: Rows) -> bool:
        """Queue a copy of the rows; False if too much waits already."""
        if self._queue.qsize() >= MOST_WAITING:
            return False
        self._queue.put((watched, rows.copy()))
        return True

    def close(self, watched: Watched) -> None:
        """Stop watching it, and forget what was found."""
        with self._lock:
            self._open.discard(watched)
            if any(other.labels == watched.labels for other in self._open):
                return  # another adapter has taken its name
            for metric in (
                self._depth, self._distance, self._nearest, self._alarm, self._windows, self._alarms
            ):  # fmt: skip
                metric.remove(*watched.labels)

    def stop(self) -> None:
        """Stop the thread, after what it is doing."""
        self._queue.put(None)
        self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            watched, rows = job
            try:
                reports = watched.drift.add(rows)
            except Exception:  # of one request's rows, and never the thread's end
                log.exception("the queries of adapter %s could not be compared", "/".join(watched.labels))
                continue
            with self._lock:
                for report in reports if watched in self._open else ():
                    self._show(watched.labels, report)

    def _show(self, labels: tuple[str, str, str], report: DriftReport) -> None:
        self._depth.labels(*labels).set(report.depth_z)
        self._distance.labels(*labels).set(report.distance_z)
        self._nearest.labels(*labels).set(report.distance)
        self._alarm.labels(*labels).set(int(report.alarm))
        self._windows.labels(*labels).inc()
        self._alarms.labels(*labels).inc(int(report.alarm))
