"""Which models the devices have loaded, and which are given up because they fail while others run well."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from trimtab.errors import BundleError, FailedPrecondition, TrimtabError, Unavailable
from trimtab_server import limited
from trimtab_server.engine.batch import Model
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.fleet import Fleet
from trimtab_server.engine.queue.cost import Cost
from trimtab_server.engine.runners import runtime
from trimtab_server.engine.runners.runner import DeviceLostError

log = logging.getLogger(__name__)

# A graph is not loaded if its loading kills the process so often.
LOSSES = 3
# A model that fails so often in a row, while others run well, is retired.
STRIKES = 3


class Roster:
    """The models of all devices. `load` and `unload` take the lock, the rest is called with it held.

    `idle` is notified of every change; `lost` is called with a device whose process died; `retired`, with the
    lock held, with a model that is no longer run, and why.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        fleet: Fleet,
        lock: threading.Lock,
        idle: threading.Condition,
        *,
        load_seconds: float,
        lost: Callable[[Device], None],
        retired: Callable[[Model, str], object],
    ) -> None:
        self.models: set[Model] = set()  # that every device in service has loaded
        self.retired: dict[Model, Unavailable] = {}  # until they are unloaded
        self._devices = devices
        self._fleet = fleet
        self._lock = lock
        self._idle = idle
        self._load_seconds = load_seconds
        self._tell_lost = lost
        self._tell_retired = retired
        self._strikes: Counter[Model] = Counter()  # how often in a row each model was at fault
        self._stopped = False

    async def load(self, model: Model) -> Cost:
        """Load a model on every device in service. Returns its cost on the slowest.

        A device that is out of service loads it when it comes back. FailedPrecondition if loading keeps
        killing the process, or gets stuck; BundleError if the model cannot be opened or run.
        """
        losses = 0
        try:
            while True:
                with self._lock:
                    devices = [device for device in self._devices if self._fleet.standing.up(device.name)]
                    missing = [device for device in devices if model not in device.costs]
                    if not self._fleet.standing.serving:
                        raise Unavailable("no device is in service: load the encoder when one is back")
                    if devices and not missing:  # another round if a device came back meanwhile
                        self.models.add(model)
                        costs = [device.costs[model] for device in devices]
                        return max(costs, key=lambda cost: cost.seconds(1, 128, 128))
                if not devices:
                    await asyncio.to_thread(self._wait_for_a_device)
                for device in missing:
                    try:
                        await self._load(device, model)
                    except DeviceLostError:
                        self._tell_lost(device)
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
        heartbeat = limited.Heartbeat()
        what = f"loading {model.encoder} version {model.version} on device {device.name}"
        try:
            await limited.run(
                self._load_seconds, what, partial(device.load, model, heartbeat.step), heartbeat
            )
        except (TrimtabError, DeviceLostError):
            if heartbeat.given_up:
                device.home.end()  # a restart, if possible, gets rid of what hangs
            raise
        except Exception as error:
            raise BundleError(
                f"{model.graph} cannot be run on device {device.name}: {runtime.told(error)}"
            ) from error

    def _wait_for_a_device(self) -> None:
        fleet = self._fleet
        with self._lock:
            self._idle.wait_for(lambda: fleet.standing.any_up or not fleet.standing.serving or self._stopped)

    def unload(self, model: Model) -> None:
        """Forget a model; no further batch of it may come."""
        with self._lock:
            self.models.discard(model)
            self.retired.pop(model, None)
            self._strikes.pop(model, None)
        for device in self._devices:
            device.unload(model)

    def stop(self) -> None:
        """Stop waiting for devices."""
        self._stopped = True

    def to_probe(self) -> list[Model]:
        """All models. Those that fail come last: one of them may kill the process."""
        return sorted(self.models, key=lambda model: self._strikes[model])

    def ran_well(self, model: Model) -> None:
        """A run of a model has succeeded."""
        self._strikes.pop(model, None)

    def strike(self, model: Model, error: Exception) -> None:
        """A model has failed, and its device is well. After several times in a row, the model is retired.

        Its items are refused, and other models have the devices to themselves. The last model is never
        retired: no other one could show that the devices are well.
        """
        self._strikes[model] += 1
        if self._strikes[model] < STRIKES or model not in self.models or len(self.models) == 1:
            return
        self._retire(
            model, f"it failed {STRIKES} times in a row, while others ran well: {runtime.told(error)}"
        )

    def not_reopened(self, model: Model, device: Device, error: Exception) -> None:
        """A restarted device cannot open a model again: the model is retired if no other device has it."""
        up = self._fleet.standing.up
        others = (other for other in self._devices if other is not device and up(other.name))
        if any(model in other.costs for other in others):
            self.strike(model, error)
        else:
            self._retire(model, f"device {device.name} began anew, and cannot open it again: {error}")

    def _retire(self, model: Model, why: str) -> None:
        if model not in self.models:
            return
        self.models.discard(model)
        what = f"{model.encoder} version {model.version} ({model.variant})"
        log.error("%s is retired: %s", what, why)
        self.retired[model] = Unavailable(f"{what} is retired: {why}")
        self._tell_retired(model, why)
