"""Load reports, for clients that balance by load: sans-IO.

Each answer to a call carries an ORCA report (Open Request Cost Aggregation): an OrcaLoadReport of
https://github.com/cncf/xds (xds/data/orca/v3), in the trailing metadata `endpoint-load-metrics-bin`. gRPC's
policy weighted_round_robin (gRFC A58) gives each server the weight

    calls a second / (utilisation + failed calls / calls)

an estimate of its capacity for such calls. Proxies that know ORCA can read the reports, too.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple, Protocol

TRAILER = "endpoint-load-metrics-bin"

# A report covers only the last three to six seconds, so that a server that was busy gets calls again.
PERIOD_SECONDS = 3.0
# A report is reused for this long.
REPORT_SECONDS = 0.1
# This much queue time counts as much as a fully busy device.
FULL_WAIT_SECONDS = 0.1
# Keeps the weight of an idle server finite.
LEAST = 0.001

# Protobuf's tags of OrcaLoadReport's doubles: rps_fractional = 6, eps = 7, application_utilization = 9. It is
# packed here, because protobuf refuses a second definition of a message in one process.
_REPORT = struct.Struct("<BdBdBd")
_RPS, _EPS, _UTILIZATION = (number << 3 | 1 for number in (6, 7, 9))


class DeviceLoad(Protocol):
    """How busy the devices are."""

    @property
    def run_seconds(self) -> float:
        """Of all runs so far."""

    @property
    def workers(self) -> int:
        """Those in service."""

    @property
    def wait_seconds(self) -> float:
        """The predicted queue seconds of a text that arrives now."""

    @property
    def share(self) -> float:
        """How much of their work comes from here, if there are several front ends; otherwise 1."""


class _Sums(NamedTuple):
    """The counts at one moment."""

    at: float
    calls: int
    failed: int
    run: float  # total seconds of all workers' runs
    waits: float  # predicted queue seconds, when a report was made
    reports: int


class Load:
    """Counts calls, and asks the devices how busy they are.

    `devices` tells how busy they are. `clock` is like time.monotonic.
    """

    def __init__(self, devices: Callable[[], DeviceLoad], clock: Callable[[], float]) -> None:
        self._devices = devices
        self._clock = clock
        self._calls = self._failed = 0
        self._last = self._begun = self._before = _Sums(clock(), 0, 0, 0.0, 0.0, 0)
        self._report = b""

    def called(self, *, overloaded: bool) -> None:
        """A call was answered; `overloaded`: with an error that another server might not have returned."""
        self._calls += 1
        self._failed += overloaded

    def report(self) -> bytes:
        """An OrcaLoadReport, at most REPORT_SECONDS old."""
        now = self._clock()
        if not self._report or now - self._last.at >= REPORT_SECONDS:
            self._report = self._make(now)
        return self._report

    def _make(self, now: float) -> bytes:
        devices = self._devices()
        run, workers, wait = devices.run_seconds, devices.workers, devices.wait_seconds
        last, since = self._last, self._before
        last = _Sums(now, self._calls, self._failed, run, last.waits + wait, last.reports + 1)
        self._last = last
        if now - self._begun.at >= PERIOD_SECONDS:
            self._before, self._begun = self._begun, last
        seconds = max(now - since.at, REPORT_SECONDS)
        busy = min((run - since.run) / seconds / max(workers, 1), 1.0)
        waited = (last.waits - since.waits) / (last.reports - since.reports)
        # The calls are those of this front end: so is its share of the utilisation.
        utilisation = devices.share * (busy + waited / FULL_WAIT_SECONDS)
        return _REPORT.pack(
            _RPS, (last.calls - since.calls) / seconds,
            _EPS, (last.failed - since.failed) / seconds,
            _UTILIZATION, max(utilisation, LEAST),
        )  # fmt: skip
