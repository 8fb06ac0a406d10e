"""The threads that run batches, each taking one whenever it is free, and the watchdog over them.

A worker runs what the fleet has to be tried again, else the next batch of the queue; while its device is
out of service it probes it. A run that hangs ends with its device's process, where it has one. A thread
cannot be killed: one that hangs is given up, and what it brings back one day is ignored.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import BundleError, DeadlineExceeded, FailedPrecondition, TrimtabError, Unavailable
from trimtab_server import limited, stopping
from trimtab_server.engine.batch import Batch, Item, Model
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.fleet import Failed, Fleet, Flight, Job, Reason
from trimtab_server.engine.queue.cost import Cost
from trimtab_server.engine.runners import runtime
from trimtab_server.engine.runners.session import DeviceLostError, NotReopenedError
from trimtab_server.observing.metrics import Metrics

log = logging.getLogger(__name__)

# How long `stop` waits for threads that have nothing to do any more: all but those that hang.
JOIN_SECONDS = 1.0
# How long it waits for what runs: what is still unanswered after the drain.
STOP_SECONDS = 5.0
# A graph at whose loading the process ends so often is not loaded.
LOSSES = 3
# A model that fails so often in a row, while others run well, is retired.
STRIKES = 3
# The watchdog looks at least this often.
WATCH_SECONDS = 60.0
# How much of what is known of the pace each run replaces, and how slow a run may make it.
PACE_STEP = 0.1
SLOWEST = 10.0
OUT_OF_SERVICE = Unavailable("no device of this server is in service: try another one, or later again")


class Workers:
    """All devices' workers, under the lock of whom they work for. Called with the lock held:

    `pop` for the next batch of the queue, by what runs cost on the device; `answer` with items, what
    became of them (a row of vectors each, or an error) and the second when that began. `serving` is
    called when the last device goes out of service, and when one is back; `retired` with a model that is not
    run any more, and why; `tell` after the answers, and without the lock where it matters: who is woken by
    them wants it at once.
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
        answer: Callable[[Sequence[Item], NDArray[np.float32] | Exception, float], None],
        tell: Callable[[], None],
        serving: Callable[[bool], object],
        retired: Callable[[Model, str], object],
    ) -> None:
        self.idle = threading.Condition(lock)  # something was finished
        self._lock = lock
        self._work = threading.Condition(lock)  # a device in service may have something to do
        self._recovery = threading.Condition(lock)  # a device out of service may
        self._watched = threading.Condition(lock)  # the watchdog may have no one to watch any more
        self._devices = devices
        self._hang_seconds = hang_seconds
        self._load_seconds = load_seconds
        self._metrics = metrics
        self._pop = pop
        self._answer = answer
        self._tell = tell
        self._tell_serving = serving
        self._tell_retired = retired
        self._by_name = {device.name: device for device in devices}
        self._fleet = Fleet(
            self._by_name, hang_seconds, self._changed, lambda name: self._by_name[name].restore_seconds
        )
        self._runs_on: dict[Flight, int] = {}  # threads
        self._probes_on: dict[Device, int] = {}
        self._strikes: Counter[Model] = Counter()  # how often in a row a model has failed, and no device
        self._retired: dict[Model, Unavailable] = {}  # until they are unloaded
        self._models: set[Model] = set()  # that every device in service has loaded
        self._pace = 1.0  # how long runs take lately, of what was measured: neighbours slow them down
        self.run_seconds = 0.0  # of all runs so far
        self._was_serving = True
        self._stopping = False
        self._threads: list[threading.Thread] = []

    # -- for whom they work; all but start, load, unload and stop with the lock held ---------------------

    @property
    def serving(self) -> bool:
        """Whether any device is in service, or will be in a moment."""
        return self._fleet.serving

    def notify(self, texts: int) -> None:
        """So many texts were queued."""
        self._work.notify(texts)

    def retired(self, model: Model) -> Unavailable | None:
        """Why this model is not run any more, where it is not."""
        return self._retired.get(model)

    def busy(self, model: Model) -> bool:
        """Whether anything of this model runs or is to be run again."""
        return self._fleet.busy(model)

    def tokens_per_second(self, model: Model) -> float:
        """What the devices in service do, at the pace of their last runs."""
        working = [self._by_name[name] for name in self._fleet.working]
        most = sum(
            device.place.workers / device.costs[model].token_seconds
            for device in working
            if model in device.costs
        )
        return most / self._pace

    @property
    def in_service(self) -> int:
        """How many workers the devices in service have."""
        return sum(device.place.workers for device in self._devices if self._fleet.up(device.name))

    def free_seconds(self, now: float) -> float:
        """Until the next worker of those in service is free, at that pace."""
        back = self._fleet.back_in(now)
        if back:
            return back
        left = [flight.begun + flight.predicted * self._pace - now for flight in self._fleet.flights]
        return 0.0 if len(left) < self.in_service else max(0.0, min(left, default=0.0))

    def start(self) -> None:
        """Start every device's workers, and the watchdog."""
        for device in self._devices:
            self._metrics.device(device.name, up=True)
            self._threads += device.start(partial(self._worker, device), partial(self._ended, device))
        self._threads.append(threading.Thread(target=self._watch, name="watchdog", daemon=True))
        self._threads[-1].start()

    async def load(self, model: Model) -> Cost:
        """Load a model on every device in service; its cost on the slowest.

        A device that is out of service loads it on its way back. FailedPrecondition where its process ends
        each time that it loads it, or it does not get on; BundleError where it cannot be opened or run.
        """
        losses = 0
        try:
            while True:
                with self._lock:
                    devices = [device for device in self._devices if self._fleet.up(device.name)]
                    missing = [device for device in devices if model not in device.costs]
                    if not self._fleet.serving:
                        raise Unavailable("no device is in service: load the encoder when one is back")
                    if devices and not missing:  # another round where a device came back meanwhile
                        self._models.add(model)
                        costs = [device.costs[model] for device in devices]
                        return max(costs, key=lambda cost: cost.seconds(1, 128, 128))
                if not devices:
                    await asyncio.to_thread(self._wait_for_a_device)
                for device in missing:
                    try:
                        await self._load(device, model)
                    except DeviceLostError:
                        self._ended(device)
                        losses += 1
                        if losses >= LOSSES:
                            raise FailedPrecondition(
                                f"the process of device {device.name} ended {losses} times while it loaded "
                                f"{model.encoder} version {model.version}; the server's log says how"
                            ) from None
        except BaseException:
            self.unload(model)
            raise

    async def _load(self, device: Device, model: Model) -> None:
        progress = limited.Progress()
        what = f"loading {model.encoder} version {model.version} on device {device.name}"
        try:
            await limited.run(self._load_seconds, what, partial(device.load, model, progress.step), progress)
        except (TrimtabError, DeviceLostError):
            if progress.given_up:
                device.home.end()  # where it can be ended, it is rid of what hangs
            raise
        except Exception as error:
            raise BundleError(
                f"{model.graph} cannot be run on device {device.name}: {runtime.told(error)}"
            ) from error

    def unload(self, model: Model) -> None:
        """Forget a model; no batch of it may come any more."""
        with self._lock:
            self._models.discard(model)
            self._retired.pop(model, None)
            self._strikes.pop(model, None)
        for device in self._devices:
            device.unload(model)

    def stop(self) -> None:
        """Stop the workers, each after its current batch; those that hang are left behind."""
        with self._lock:
            self._stopping = True
            self._work.notify_all()
            self._recovery.notify_all()
            self.idle.notify_all()
            self.idle.wait_for(lambda: not self._fleet.flying, STOP_SECONDS)
            for flight in list(self._fleet.flights):  # nobody waits for them any more
                self._fleet.land(flight)
            self.idle.notify_all()
            self._watched.notify()
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
                if not self._fleet.up(device.name):
                    seconds = self._fleet.probe_in(device.name, now)
                    if seconds == 0:
                        self._fleet.probing(device.name, now)
                        # Those that fail come last: one may end the process, and with it what came before.
                        models = sorted(self._models, key=lambda model: self._strikes[model])
                        return partial(self._probe, device, models)
                    self._recovery.wait(seconds)
                    continue
                job = self._next(device, now)
                if job is not None:
                    batch = job.batch
                    predicted = device.costs[batch.model].seconds(
                        len(batch.items), batch.tokens, batch.length
                    )
                    flight = self._fleet.launch(device.name, job, predicted, now)
                    return partial(self._run, device, flight)
                self.idle.notify_all()
                self._work.wait()
        return None

    def _next(self, device: Device, now: float) -> Job | None:
        while True:
            again = self._fleet.again(device.name, now)
            if again.expired:
                late = DeadlineExceeded(
                    "the deadline passed before the texts could be tried on another device"
                )
                self._answer(again.expired, late, now)
            job = again.job
            if job is None and not again.hold and (batch := self._pop(now, device.costs)) is not None:
                job = Job(batch)
            if job is None or job.batch.model not in self._retired:
                return job
            self._answer(job.batch.items, self._retired[job.batch.model], now)
            self._tell()

    def _run(self, device: Device, flight: Flight) -> None:
        batch = flight.job.batch
        self._runs_on[flight] = threading.get_ident()
        outcome = device.run(batch.model, [item.ids for item in batch.items])
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
            size=len(batch.items), tokens=batch.tokens, computed=batch.computed_tokens, seconds=seconds,
        )  # fmt: skip
        with self._lock:
            # A session may be of the process before, if it was opened as that ended: a probe finds it.
            if device.home.lost or _is_lost(outcome):
                self._fleet.lost(device.name, time.monotonic())
            self._runs_on.pop(flight, None)
            if fault == "model" and isinstance(outcome, Exception):
                self._strike(batch.model, outcome)
            if not self._fleet.land(flight):
                return
            self.run_seconds += seconds
            now = time.monotonic()
            if isinstance(outcome, Exception):
                failures = self._failures(device, flight, outcome, sick=sick)
                self._fail(failures)
                if failures and fault is None and (flight.stopped or _is_lost(outcome)):
                    self._strike(batch.model, outcome)
            else:
                self._strikes.pop(batch.model, None)
                self._answer(batch.items, outcome, flight.begun)
                self._fleet.succeeded(flight, now)
                self._pace += PACE_STEP * (min(seconds / flight.predicted, SLOWEST) - self._pace)
            if flight.job.suspect or self._fleet.suspects:  # others waited for this device to be free
                self._work.notify_all()
            if not self._fleet.up(device.name):
                self._recovery.notify_all()
            self._settle()

    def _failures(self, device: Device, flight: Flight, error: Exception, *, sick: bool) -> list[Failed]:
        """What has failed for good of a flight that has landed with an error."""
        now = time.monotonic()
        if device.home.restarts and (sick or _is_lost(error)):
            return self._fleet.ended(flight, error)
        if flight.stopped and not sick:
            return self._fleet.overran(flight, now)
        return self._fleet.failed(flight, error, sick=sick, now=now)

    def _strike(self, model: Model, error: Exception) -> None:
        """A model has failed, and its device has not. When it has so several times in a row, it is retired.

        Its texts are refused, and others have the devices to themselves. The last model is not: who knows?
        """
        self._strikes[model] += 1
        if self._strikes[model] < STRIKES or model not in self._models or len(self._models) == 1:
            return
        self._retire(
            model, f"it failed {STRIKES} times in a row, while others ran well: {runtime.told(error)}"
        )

    def _retire(self, model: Model, why: str) -> None:
        if model not in self._models:
            return
        self._models.discard(model)
        what = f"{model.encoder} version {model.version} ({model.variant})"
        log.error("%s is retired: %s", what, why)
        self._retired[model] = Unavailable(f"{what} is retired: {why}")
        self._tell_retired(model, why)

    def _probe(self, device: Device, models: Sequence[Model]) -> None:
        if device.stale:
            self._metrics.device_restarted(device.name)
        self._probes_on[device] = threading.get_ident()
        failing, error = device.recover(models)
        if error is not None:
            log.warning("device %s is not well yet: %r", device.name, error)
        with self._lock:
            if self._stopping:
                return
            for model, wrong in failing.items():
                if isinstance(wrong, NotReopenedError) and not self._is_elsewhere(model, device):
                    self._retire(model, f"device {device.name} began anew, and cannot open it again: {wrong}")
                else:
                    self._strike(model, wrong)
            # Models that were loaded meanwhile are for the next probe, those unloaded for nobody.
            well = error is None and self._models <= device.costs.keys()
            self._fleet.probed(device.name, well=well, now=time.monotonic())
            self._settle()
            gone = [model for model in models if model not in self._models]
        for model in gone:
            device.unload(model)

    def _is_elsewhere(self, model: Model, device: Device) -> bool:
        others = (other for other in self._devices if other is not device and self._fleet.up(other.name))
        return any(model in other.costs for other in others)

    def _ended(self, device: Device) -> None:
        """A device's process has ended, maybe while nothing ran there."""
        with self._lock:
            if device.home.lost and not self._stopping:
                self._fleet.lost(device.name, time.monotonic())
                self._settle()
        self._tell()

    def _wait_for_a_device(self) -> None:
        with self._lock:
            self.idle.wait_for(lambda: self.in_service or not self._fleet.serving or self._stopping)

    # -- the watchdog ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        with self._lock:
            while not self._stopping or self._fleet.flying:
                now = time.monotonic()
                for flight in self._fleet.late(now):
                    stopping.stop(self._runs_on.get(flight))
                failures = self._fleet.hung(now)
                self._fail(failures)
                for flight in self._runs_on.keys() - set(self._fleet.flights):
                    stopping.stop(self._runs_on[flight])  # it was given up, and may be in its next run
                for failed in failures if self._devices[0].home.restarts else ():
                    self._strike(failed.items[0].model, failed.error)
                for name in self._fleet.stuck(now):
                    device = self._by_name[name]
                    device.home.end()
                    stopping.stop(self._probes_on.get(device))
                for device in self._devices:
                    if self._fleet.up(device.name) and device.too_large:
                        self._fleet.retire(device.name, now)
                self._settle()
                self._tell()
                # What takes off while the watchdog sleeps is not due before it looks again.
                until = min(now + WATCH_SECONDS, now + self._hang_seconds, self._fleet.due() or now + 1e9)
                self._watched.wait(until - now)

    # -- with the lock held ------------------------------------------------------------------------------

    def _fail(self, failures: Sequence[Failed]) -> None:
        """Answer what has failed for good, and let others take what has not."""
        for failed in failures:
            self._answer(failed.items, failed.error, time.monotonic())
        self._work.notify_all()

    def _settle(self) -> None:
        """Something was finished or changed; where no device is left, nothing waits for one."""
        if self._fleet.serving != self._was_serving:
            self._was_serving = self._fleet.serving
            self._tell_serving(self._was_serving)
        if not self._fleet.serving:
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
