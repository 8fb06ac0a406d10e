"""Looks after runs that hang: each is stopped or given up, and its device's process killed, if it has one.

A thread cannot be killed. One that hangs is given up, and its late result is discarded.
"""

import threading
import time
from collections.abc import Callable, Sequence

from trimtab_server import stopping
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.fleet import FailedItems, Fleet, Flight
from trimtab_server.engine.fleet.roster import Roster

# The watchdog looks at least this often.
WATCH_SECONDS = 60.0


class Watchdog:
    """A thread over all workers, under their lock.

    With the lock held it calls `fail` with what has failed for good, `settle` when something may have
    changed, and `tell` after answers.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        fleet: Fleet,
        roster: Roster,
        lock: threading.Lock,
        hang_seconds: float,
        *,
        fail: Callable[[Sequence[FailedItems]], None],
        settle: Callable[[], None],
        tell: Callable[[], None],
    ) -> None:
        self.runs_on: dict[Flight, int] = {}  # threads
        self.probes_on: dict[Device, int] = {}
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._devices = devices
        self._fleet = fleet
        self._roster = roster
        self._lock = lock
        self._changed = threading.Condition(lock)  # there may be nothing left to watch
        self._hang_seconds = hang_seconds
        self._fail = fail
        self._settle = settle
        self._tell = tell
        self._stopping = False

    def stop(self) -> None:
        """Watch only until nothing runs. With the lock held."""
        self._stopping = True
        self._changed.notify()

    def _watch(self) -> None:
        with self._lock:
            while not self._stopping or self._fleet.flying:
                now = time.monotonic()
                self._look(now)
                self._settle()
                self._tell()
                # A flight that starts while the watchdog sleeps is not due before it looks again.
                until = min(now + WATCH_SECONDS, now + self._hang_seconds, self._fleet.due() or now + 1e9)
                self._changed.wait(until - now)

    def _look(self, now: float) -> None:
        for flight in self._fleet.late(now):
            stopping.stop(self.runs_on.get(flight))
        failures = self._fleet.hung(now)
        self._fail(failures)
        for flight in self.runs_on.keys() - set(self._fleet.flights):
            stopping.stop(self.runs_on[flight])  # it was given up, and may be in its next run
        for failed in failures if self._devices[0].home.restarts else ():
            self._roster.strike(failed.items[0].model, failed.error)
        stuck = set(self._fleet.standing.stuck(now))
        for device in self._devices:
            if device.name in stuck:
                device.home.end()
                stopping.stop(self.probes_on.get(device))
            if self._fleet.standing.up(device.name) and device.too_large:
                self._fleet.standing.retire(device.name, now)
