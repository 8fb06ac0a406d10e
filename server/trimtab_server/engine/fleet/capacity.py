"""The capacity of the devices in service: their throughput, and when the next one is free."""

from collections.abc import Sequence

from trimtab_server.engine.batch import Model
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.fleet import Fleet, Flight

# The weight of each run in the running average of the pace, and the slowest that a run can count.
PACE_STEP = 0.1
SLOWEST = 10.0


class Capacity:
    """The capacity of the devices in service, by their recent runs. The engine's lock guards it, like the
    fleet."""

    def __init__(self, devices: Sequence[Device], fleet: Fleet) -> None:
        self.run_seconds = 0.0  # of all runs so far
        self._devices = {device.name: device for device in devices}
        self._fleet = fleet
        self._pace = 1.0  # how long recent runs took, relative to their cost: neighbours slow them down

    @property
    def workers(self) -> int:
        """How many workers the devices in service have."""
        up = self._fleet.standing.up
        return sum(device.place.workers for device in self._devices.values() if up(device.name))

    def units_per_second(self, model: Model) -> float:
        """The throughput of the devices in service, at the current pace."""
        working = [self._devices[name] for name in self._fleet.standing.working]
        most = sum(
            device.place.workers / device.costs[model].unit_seconds
            for device in working
            if model in device.costs
        )
        return most / self._pace

    def free_seconds(self, now: float) -> float:
        """Seconds until the next worker in service is free, at the current pace."""
        back = self._fleet.standing.back_in(now)
        if back:
            return back
        flights = self._fleet.flights
        if not flights:
            return 0.0
        if len(flights) < self.workers:
            return 0.0
        left = min(flight.begun + flight.predicted * self._pace for flight in flights) - now
        return max(0.0, left)

    def ran(self, flight: Flight, seconds: float) -> None:
        """A successful run took so long."""
        self._pace += PACE_STEP * (min(seconds / flight.predicted, SLOWEST) - self._pace)
