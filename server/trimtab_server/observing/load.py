"""How much there is to do here, for clients that send their calls where there is least: sans-IO.

Each answer to a call carries a report of Open Request Cost Aggregation (ORCA): OrcaLoadReport of
https://github.com/cncf/xds (xds/data/orca/v3), as the trailing metadata `endpoint-load-metrics-bin`. gRPC's
policy weighted_round_robin (gRFC A58) gives each server the weight

    calls a second / (utilisation + failed calls / calls)

which is how many calls it would do if it did nothing else. Proxies that know ORCA read the reports, too.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

TRAILER = "endpoint-load-metrics-bin"

# A report is about the last three to six seconds, and then forgets: a server that was busy is found again.
PERIOD_SECONDS = 3.0
# It is made this often at most, and repeated meanwhile.
REPORT_SECONDS = 0.1
# Waiting this long for a device weighs as much as a device that is busy all the time.
FULL_WAIT_SECONDS = 0.1
# An idle server is not infinitely better than another one.
LEAST = 0.001

# Protobuf's tags of OrcaLoadReport's doubles: rps_fractional = 6, eps = 7, application_utilization = 9. It is
# packed here, because protobuf refuses a second definition of a message in one process.
_REPORT = struct.Struct("<BdBdBd")
_RPS, _EPS, _UTILIZATION = (number << 3 | 1 for number in (6, 7, 9))


class _Sums(NamedTuple):
    """What happened until a moment."""

    at: float
    calls: int
    failed: int
    run: float  # seconds of all workers' runs
    waits: float  # seconds that a text would have waited, when a report was made
    reports: int


class Load:
    """Counts calls, and asks the devices how busy they are.

    `devices` gives the seconds of all their runs so far, how many workers are in service, and about how many
    seconds a text would wait for one now. `clock` is time.monotonic's.
    """

    def __init__(self, devices: Callable[[], tuple[float, int, float]], clock: Callable[[], float]) -> None:
        self._devices = devices
        self._clock = clock
        self._calls = self._failed = 0
        self._last = self._begun = self._before = _Sums(clock(), 0, 0, 0.0, 0.0, 0)
        self._report = b""

    def called(self, *, overloaded: bool) -> None:
        """A call was answered; `overloaded`: with an error that another server may not have given."""
        self._calls += 1
        self._failed += overloaded

    def report(self) -> bytes:
        """An OrcaLoadReport, at most REPORT_SECONDS old."""
        now = self._clock()
        if not self._report or now - self._last.at >= REPORT_SECONDS:
            self._report = self._make(now)
        return self._report

    def _make(self, now: float) -> bytes:
        run, workers, wait = self._devices()
        last, since = self._last, self._before
        last = _Sums(now, self._calls, self._failed, run, last.waits + wait, last.reports + 1)
        self._last = last
        if now - self._begun.at >= PERIOD_SECONDS:
            self._before, self._begun = self._begun, last
        seconds = max(now - since.at, REPORT_SECONDS)
        busy = min((run - since.run) / seconds / max(workers, 1), 1.0)
        waited = (last.waits - since.waits) / (last.reports - since.reports)
        return _REPORT.pack(
            _RPS, (last.calls - since.calls) / seconds,
            _EPS, (last.failed - since.failed) / seconds,
            _UTILIZATION, max(busy + waited / FULL_WAIT_SECONDS, LEAST),
        )  # fmt: skip
