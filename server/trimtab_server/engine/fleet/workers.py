"""The threads that run batches, each taking one whenever it is free.

A worker runs what the fleet wants tried again, or else the queue's next batch. While its device is out of
service, it probes it.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from trimtab.errors import DeadlineExceeded, Unavailable
from trimtab.values.column import Columns
from trimtab_server.engine.batch import Batch, Item, Model
from trimtab_server.engine.fleet.capacity import Capacity
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.fleet import FailedItems, Fleet, Flight, Job
from trimtab_server.engine.fleet.roster import Roster
from trimtab_server.engine.fleet.standing import Reason
from trimtab_server.engine.fleet.watchdog import Watchdog
from trimtab_server.engine.queue.cost import Cost
from trimtab_server.engine.runners import runtime
from trimtab_server.engine.runners.runner import DeviceLostError, NotReopenedError
from trimtab_server.observing.metrics import Metrics
from trimtab_server.waking import RareCondition

log = logging.getLogger(__name__)

# How long `stop` waits for idle threads: all but those that hang.
JOIN_SECONDS = 1.0
# How long it waits for runs that are still unanswered after the drain.
STOP_SECONDS = 5.0
OUT_OF_SERVICE = Unavailable("no device of this server is in service: try another one, or later again")


class Workers:
    """All devices' workers, under the engine's lock.

    Called with the lock held: `pop` for the queue's next batch, given the costs of runs on the device;
    `patience` for how many seconds that should be left waiting (0: not at all); `answer` with items, their
    outcome (a result with an item for each, or an error), and when their run began; `serving` when the last
    device goes out of service, and when one is back; `retired` with a model that is no longer run, and why.
    `tell` is called after the answers, without the lock where it matters: those it wakes need the lock at
    once.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        lock: threading.Lock,
        hang_seconds: float,
        metrics: Metrics,
        *,
        load_seconds: float,
        pop: Callable[[float, Mapping[Model, Cost]], Batch | None],
        patience: Callable[[], float],
        answer: Callable[[Sequence[Item], Columns | Exception, float], None],
        tell: Callable[[], None],
        serving: Callable[[bool], object],
        retired: Callable[[Model, str], object],
    ) -> None:
        self.idle = RareCondition(lock)  # something was finished
        self._lock = lock
        self._work = threading.Condition(lock)  # a device in service may have something to do
        self._recovery = threading.Condition(lock)  # a device out of service may
        self._devices = devices
        self._metrics = metrics
        self._pop = pop
        self._patience = patience
        self._patient = 0  # workers that leave what is queued waiting
        self._answer = answer
        self._tell = tell
        self._tell_serving = serving
        self._by_name = {device.name: device for device in devices}
        self._fleet = Fleet(
            self._by_name, hang_seconds, self._changed, lambda name: self._by_name[name].restore_seconds
        )
        self._standing = self._fleet.standing
        self.capacity = Capacity(devices, self._fleet)
        self.roster = Roster(
            devices, self._fleet, lock, self.idle,
            load_seconds=load_seconds, lost=self._ended, retired=retired,
        )  # fmt: skip
        self._watchdog = Watchdog(
            devices, self._fleet, self.roster, lock, hang_seconds,
            fail=self._fail, settle=self._settle, tell=tell,
        )  # fmt: skip
        self._was_serving = True
        self._stopping = False
        self._threads: list[threading.Thread] = []

    # -- for whom they work; all but start and stop with the lock held ---------------------

    @property
    def serving(self) -> bool:
        """Whether any device is in service, or will be in a moment."""
        return self._standing.serving

    def notify(self, items: int) -> None:
        """Wake workers for so many queued items, unless one waits for more: waking it costs time."""
        if not (self._patient and self._patience()):
            self._work.notify(items)

    def retired(self, model: Model) -> Unavailable | None:
        """Why this model is no longer run, if so."""
        return self.roster.retired.get(model)

    def busy(self, model: Model) -> bool:
        """Whether anything of this model runs or is to be run again."""
        return self._fleet.busy(model)

    def start(self) -> None:
        """Start every device's workers, and the watchdog."""
        for device in self._devices:
            self._metrics.device(device.name, up=True)
            self._threads += device.start(partial(self._worker, device), partial(self._ended, device))
        self._threads.append(self._watchdog.thread)
        self._watchdog.thread.start()

    def stop(self) -> None:
        """Stop the workers, each after its current batch; those that hang are left behind."""
        with self._lock:
            self._stopping = True
            self.roster.stop()
            self._work.notify_all()
            self._recovery.notify_all()
            self.idle.notify_all()
            self.idle.wait_for(lambda: not self._fleet.flying, STOP_SECONDS)
            for flight in list(self._fleet.flights):  # nobody waits for them
                self._fleet.land(flight)
            self.idle.notify_all()
            self._watchdog.stop()
        for device in self._devices:
            device.home.stop()
        until = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    # -- on worker threads -------------------------------------------------------------------------------

    def _worker(self, device: Device) -> None:
        while (task := self._take(device)) is not None:
            try:
                task()
                self._tell()
            except Exception:  # the watchdog answers what was not; the place keeps its worker
                log.exception("a worker of device %s failed", device.name)

    def _take(self, device: Device) -> Callable[[], None] | None:
        """What a worker of this device does next; None: nothing, ever."""
        with self._lock:
            while not self._stopping:
                now = time.monotonic()
                if not self._standing.up(device.name):
                    seconds = self._fleet.probe_in(device.name, now)
                    if seconds == 0:
                        self._standing.probing(device.name, now)
                        return partial(self._probe, device, self.roster.to_probe())
                    self._recovery.wait(seconds)
                    continue
                patience = self._patience()
                job = self._next(device, now, queued=not patience)
                if job is not None:
                    batch = job.batch
                    predicted = device.costs[batch.model].seconds(
                        len(batch.items), batch.units, batch.longest
                    )
                    flight = self._fleet.launch(device.name, job, predicted, now)
                    return partial(self._run, device, flight)
                self.idle.notify_all()
                self._patient += bool(patience)
                self._work.wait(patience or None)
                self._patient -= bool(patience)
        return None

    def _next(self, device: Device, now: float, *, queued: bool) -> Job | None:
        """What is to be run again here, or else, if `queued`, the queue's next batch."""
        while True:
            again = self._fleet.again(device.name, now)
            if again.expired:
                late = DeadlineExceeded(
                    "the deadline passed before the texts could be tried on another device"
                )
                self._answer(again.expired, late, now)
            job = again.job
            free = job is None and not again.hold and queued
            if free and (batch := self._pop(now, device.costs)) is not None:
                job = Job(batch)
            if job is None or (retired := self.retired(job.batch.model)) is None:
                return job
            self._answer(job.batch.items, retired, now)
            self._tell()

    def _run(self, device: Device, flight: Flight) -> None:
        batch = flight.job.batch
        self._watchdog.runs_on[flight] = threading.get_ident()
        outcome = device.run(batch.model, [item.payload for item in batch.items], batch.wanted)
        seconds = time.monotonic() - flight.begun
        fault = None
        if isinstance(outcome, Exception) and not (_is_lost(outcome) or device.home.lost):
            log.warning(
                "device %s failed on %d texts: %s", device.name, len(batch.items), runtime.told(outcome)
            )
            with self._lock:
                self._fleet.returned(flight, time.monotonic())
            fault = device.judge(batch.model)
            if fault == "device":
                device.home.end()
        sick = fault == "device"
        self._metrics.batch(
            batch.model.encoder, batch.model.version, device.name,
            size=len(batch.items), tokens=batch.units, computed=batch.computed_units, seconds=seconds,
        )  # fmt: skip
        with self._lock:
            # A session may be of the process before, if it was opened as that ended: a probe finds it.
            if device.home.lost or _is_lost(outcome):
                self._standing.take_out(device.name, "lost", time.monotonic())
            self._watchdog.runs_on.pop(flight, None)
            if fault == "model" and isinstance(outcome, Exception):
                self.roster.strike(batch.model, outcome)
            if not self._fleet.land(flight):
                return
            self.capacity.run_seconds += seconds
            now = time.monotonic()
            if isinstance(outcome, Exception):
                failures = self._failures(device, flight, outcome, sick=sick)
                self._fail(failures)
                if failures and fault is None and (flight.stopped or _is_lost(outcome)):
                    self.roster.strike(batch.model, outcome)
            else:
                self.roster.ran_well(batch.model)
                self._answer(batch.items, outcome, flight.begun)
                self._fleet.succeeded(flight, now)
                self.capacity.ran(flight, seconds)
            if flight.job.suspect or self._fleet.suspects:  # others waited for this device to be free
                self._work.notify_all()
            if not self._standing.up(device.name):
                self._recovery.notify_all()
            self._settle()

    def _failures(self, device: Device, flight: Flight, error: Exception, *, sick: bool) -> list[FailedItems]:
        """What has failed for good of a flight that has landed with an error."""
        now = time.monotonic()
        if device.home.restarts and (sick or _is_lost(error)):
            return self._fleet.ended(flight, error)
        if flight.stopped and not sick:
            return self._fleet.overran(flight, now)
        return self._fleet.failed(flight, error, sick=sick, now=now)

    def _probe(self, device: Device, models: Sequence[Model]) -> None:
        if device.stale:
            self._metrics.device_restarted(device.name)
        self._watchdog.probes_on[device] = threading.get_ident()
        failing, error = device.recover(models)
        if error is not None:
            log.warning("device %s is not well yet: %r", device.name, error)
        with self._lock:
            if self._stopping:
                return
            for model, wrong in failing.items():
                if isinstance(wrong, NotReopenedError):
                    self.roster.not_reopened(model, device, wrong)
                else:
                    self.roster.strike(model, wrong)
            # Models loaded meanwhile are left to the next probe; those unloaded meanwhile are dropped below.
            well = error is None and self.roster.models <= device.costs.keys()
            self._standing.probed(device.name, well=well, now=time.monotonic())
            self._settle()
            gone = [model for model in models if model not in self.roster.models]
        for model in gone:
            device.unload(model)

    def _ended(self, device: Device) -> None:
        """A device's process has ended, maybe while nothing ran there."""
        with self._lock:
            if device.home.lost and not self._stopping:
                self._standing.take_out(device.name, "lost", time.monotonic())
                self._settle()
        self._tell()

    # -- with the lock held ------------------------------------------------------------------------------

    def _fail(self, failures: Sequence[FailedItems]) -> None:
        """Answer what has failed for good, and let others take what has not."""
        for failed in failures:
            self._answer(failed.items, failed.error, time.monotonic())
        self._work.notify_all()

    def _settle(self) -> None:
        """Something was finished or changed; if no device is left, nothing waits for one."""
        if self._standing.serving != self._was_serving:
            self._was_serving = self._standing.serving
            self._tell_serving(self._was_serving)
        if not self._standing.serving:
            now = time.monotonic()
            self._answer(self._fleet.clear(), OUT_OF_SERVICE, now)
            while (batch := self._pop(now, {})) is not None:
                self._answer(batch.items, OUT_OF_SERVICE, now)
        self.idle.notify_all()

    def _changed(self, device: str, up: bool, reason: Reason | None) -> None:
        if reason is not None:
            self._metrics.device_failed(device, reason)
        log.warning("device %s is %s", device, "back in service" if up else f"out of service: {reason}")
        if reason == "hung":
            self._by_name[device].home.end()
        self._metrics.device(device, up=up)
        # Its workers change sides: those in service wait for work, those out of it for recovery.
        self._work.notify_all()
        self._recovery.notify_all()


def _is_lost(outcome: object) -> bool:
    return isinstance(outcome, DeviceLostError)
