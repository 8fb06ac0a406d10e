"""What runs on which device, and where a failed batch goes: a sans-IO policy.

A failed batch is tried once more, whole, on another device. If that succeeds, the first device was at fault,
and is taken out of service. If it fails too, or there is no other device, the batch is run by halves, so that
in the end only items have failed that fail alone. A device that fails on a known good item is at fault as
well. So is one that takes twenty times as long as a run was measured to take and, on a thread, does not end
the run when told to stop. How a device comes back is in standing.py. If none is in service, nothing waits:
the engine refuses what is queued.

Each item leaves exactly once: with a flight that landed, or in what `failed`, `hung`, `again` or `clear`
return. A flight that was given up as hung may return at any time; it does not land.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from trimtab.errors import InternalError, TrimtabError, Unavailable
from trimtab_server.engine.batch import Batch, Item, Model
from trimtab_server.engine.fleet.standing import HANG_FACTOR, PROBE_SECONDS, Changed, Standing, never

# How long a run may take to end once it was told to stop.
STOP_SECONDS = 2.0


class Job(msgspec.Struct, eq=False):
    """A batch to run. `retried`: it has failed before, on `avoid` if that is named, and is not retried
    again."""

    batch: Batch
    retried: bool = False
    avoid: str = ""
    blame: bool = False  # `avoid` raised on it, and is at fault if another device succeeds
    suspect: bool = False  # the process that ran it has died


class Flight(msgspec.Struct, eq=False):
    """A job on a device."""

    job: Job
    device: str
    begun: float
    predicted: float  # seconds
    due: float  # when it counts as hung
    stopped: bool = False  # it was told to stop


@dataclass(frozen=True, slots=True)
class FailedItems:
    """Items that failed for good. An error that is not one of ours is what the session raised."""

    items: tuple[Item, ...]
    error: Exception


@dataclass(frozen=True, slots=True)
class Retry:
    """What `again` found: a job, and items whose deadline passed while they waited to be tried again.

    `hold`: nothing may start on the device yet, since a suspect job must run there alone.
    """

    job: Job | None
    expired: tuple[Item, ...]
    hold: bool = False


NOTHING, HOLD = Retry(None, ()), Retry(None, (), hold=True)


def _given_up(device: str, seconds: float) -> InternalError:
    return InternalError(
        f"the texts were given up: device {device} did not answer in {seconds:.0f} s. Send them one by one "
        "to find the one at fault"
    )


class Fleet:
    """What runs, and what has to run again. Not thread-safe: the engine's lock guards it.

    `changed` and `restore_seconds` are passed on to the standing.
    """

    def __init__(
        self,
        devices: Iterable[str],
        hang_seconds: float,
        changed: Changed,
        restore_seconds: Callable[[str], float] = never,
    ) -> None:
        self.standing = Standing(devices, changed, restore_seconds)
        self._hang_seconds = hang_seconds
        self._flights: dict[Flight, None] = {}  # a set that keeps its order
        self._jobs: list[Job] = []  # failed jobs that wait to be run again

    @property
    def flying(self) -> bool:
        """Whether anything runs, apart from what was given up."""
        return bool(self._flights)

    @property
    def flights(self) -> Collection[Flight]:
        """What runs now."""
        return self._flights

    def busy(self, model: Model) -> bool:
        """Whether anything of this model runs or waits to be run again."""
        jobs = [*self._jobs, *(flight.job for flight in self._flights)]
        return any(job.batch.model is model for job in jobs)

    # -- a job's way -----------------------------------------------------------------------------------

    def again(self, device: str, now: float) -> Retry:
        """The oldest job that waits to be run again and may run here, without items that nobody wants."""
        here = [flight for flight in self._flights if flight.device == device] if self._flights else ()
        for flight in here:
            if flight.job.suspect:
                return HOLD
        if not self._jobs:
            return NOTHING
        expired: list[Item] = []
        for job in list(self._jobs):
            if job.avoid == device and self.standing.other_than(device):
                continue
            if job.suspect and here:
                return Retry(None, tuple(expired), hold=True)
            self._jobs.remove(job)
            wanted = []
            for item in job.batch.items:
                if item.deadline is not None and item.deadline <= now:
                    expired.append(item)
                elif item.waiters:
                    wanted.append(item)
            if wanted:
                batch = Batch(job.batch.model, tuple(wanted))
                return Retry(replace(job, batch=batch), tuple(expired))
        return Retry(None, tuple(expired))

    def launch(self, device: str, job: Job, predicted: float, now: float) -> Flight:
        """A job starts on a device, and should take `predicted` seconds."""
        flight = Flight(job, device, now, predicted, now + max(self._hang_seconds, HANG_FACTOR * predicted))
        self._flights[flight] = None
        return flight

    @property
    def suspects(self) -> bool:
        """Whether a job waits that must run alone on its device."""
        return bool(self._jobs) and any(job.suspect for job in self._jobs)

    def land(self, flight: Flight) -> bool:
        """A run has returned; False if it was given up before: its result must be ignored."""
        if flight not in self._flights:
            return False
        del self._flights[flight]
        return True

    def succeeded(self, flight: Flight, now: float) -> None:
        """A flight has landed with a result."""
        self.standing.well(flight.device)
        if flight.job.blame and flight.job.avoid != flight.device:
            self.standing.take_out(flight.job.avoid, "raised", now)

    def failed(self, flight: Flight, error: Exception, *, sick: bool, now: float) -> list[FailedItems]:
        """A flight has landed with an error; `sick`: its device fails on a known good item."""
        job, device = flight.job, flight.device
        if sick:
            self.standing.take_out(device, "raised", now)
        if not job.retried and self.standing.other_than(device):
            again = replace(job, retried=True, avoid=device, blame=True)
            self._jobs.append(again)
            return []
        if sick:
            return [FailedItems(job.batch.items, Unavailable(f"device {device} failed; try another server"))]
        if len(job.batch.items) == 1:
            return [FailedItems(job.batch.items, error)]
        self._halve(job)
        return []

    def ended(self, flight: Flight, error: Exception) -> list[FailedItems]:
        """A flight has landed because its process died, whether or not it was the cause."""
        job = flight.job
        if not job.suspect:
            avoid = flight.device if self.standing.other_than(flight.device) else ""
            self._jobs.append(replace(job, avoid=avoid, blame=False, suspect=True))
        elif len(job.batch.items) == 1:
            return [FailedItems(job.batch.items, error)]
        else:
            self._halve(job)
        return []

    def due(self) -> float | None:
        """When the next flight or probe counts as hung, or a device is no longer waited for."""
        times = [self.standing.due(), *(flight.due for flight in self._flights)]
        return min((each for each in times if each is not None), default=None)

    def late(self, now: float) -> list[Flight]:
        """The overdue flights on devices that cannot be restarted, each once.

        They are to be told to stop, and get a little longer.
        """
        late = [
            flight
            for flight in self._flights
            if flight.due <= now and not flight.stopped and not self.standing.begins_anew(flight.device)
        ]
        for flight in late:
            flight.stopped = True
            flight.due = now + min(self._hang_seconds, STOP_SECONDS)
        return late

    def returned(self, flight: Flight, now: float) -> None:
        """A run has returned with an error; it lands when the cause is known."""
        if flight in self._flights and not self.standing.begins_anew(flight.device):
            flight.due = now + PROBE_SECONDS

    def overran(self, flight: Flight, now: float) -> list[FailedItems]:
        """A flight has landed because it was stopped: what it ran hangs, not its device."""
        job, seconds = flight.job, now - flight.begun
        if not job.retried and self.standing.other_than(flight.device):
            self._jobs.append(replace(job, retried=True, avoid=flight.device, blame=False))
            return []
        return [FailedItems(job.batch.items, _given_up(flight.device, seconds))]

    def hung(self, now: float) -> list[FailedItems]:
        """Give up overdue flights, take their devices out of service, and stop waiting for late devices."""
        gone = []
        self.standing.give_up_waiting(now)
        for flight in [flight for flight in self._flights if flight.due <= now]:
            job, device = flight.job, flight.device
            del self._flights[flight]
            self.standing.take_out(device, "hung", now)
            seconds = now - flight.begun
            if not job.retried and (self.standing.other_than(device) or self.standing.restoring(device)):
                avoid = device if self.standing.other_than(device) else ""
                self._jobs.append(replace(job, retried=True, avoid=avoid, blame=False))
                continue
            error: TrimtabError = Unavailable(
                f"device {device} did not answer in {seconds:.0f} s, and no other is in service: "
                "try another server"
            )
            if job.retried:  # two devices failed on it: a third server's would, too
                error = _given_up(device, seconds)
            gone.append(FailedItems(job.batch.items, error))
        return gone

    def clear(self) -> list[Item]:
        """Remove all items that wait to be run again."""
        items = [item for job in self._jobs for item in job.batch.items]
        self._jobs.clear()
        return items

    def probe_in(self, device: str, now: float) -> float | None:
        """Seconds until the device should be probed; None while it is in service, being probed, or busy with
        runs that must end before."""
        busy = any(flight.device == device for flight in self._flights)
        return self.standing.probe_in(device, now, busy=busy)

    def _halve(self, job: Job) -> None:
        items = job.batch.items
        half = len(items) // 2
        for part in (items[:half], items[half:]):
            batch = Batch(job.batch.model, part)
            self._jobs.append(Job(batch, job.retried, suspect=job.suspect))
