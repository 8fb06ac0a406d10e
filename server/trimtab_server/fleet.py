"""Which devices are in service, what runs on them, and where a batch goes that failed: a sans-IO policy.

A batch that fails is tried once more, whole, on another device. Where that succeeds, the first device was
at fault, and is taken out of service; where it fails too, or there is no other device, the batch is run by
halves, so that in the end only the texts have failed that fail alone. A device that fails on a text known
to be good is at fault as well; so is one that does not come back from a run in twenty times the time that
the run was measured to take. A device out of service is probed, at growing intervals, and comes back when
it is well. When none is in service, nothing waits: what is queued is the engine's to refuse.

Each item leaves exactly once: answered by a flight that landed, or in the answer of `failed`, `hung`,
`again` or `clear`. A flight that was given up as hung may come back at any time; it does not land.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from trimtab.errors import InternalError, TrimtabError, Unavailable
from trimtab_server.batch import Batch, Item, Model

Reason = Literal["raised", "hung", "probe"]

# A run hangs that takes so many times as long as predicted; neighbours may make it several times as long.
HANG_FACTOR = 20.0
# Seconds from when a device is taken out until it is probed: doubled by each failure, halved by each success.
FIRST_PROBE, LAST_PROBE = 0.1, 30.0


@dataclass(eq=False, slots=True)
class Job:
    """A batch to run. `retried`: it failed before, on `avoid` where that is named, and has no other retry."""

    batch: Batch
    retried: bool = False
    avoid: str = ""
    blame: bool = False  # `avoid` raised on it, and is at fault where another device succeeds


@dataclass(eq=False, slots=True)
class Flight:
    """A job on a device."""

    job: Job
    device: str
    begun: float
    predicted: float  # seconds
    due: float  # when it counts as hung


@dataclass(frozen=True, slots=True)
class Failed:
    """Items that failed for good. An error that is not ours already is what the session raised on them."""

    items: tuple[Item, ...]
    error: Exception


@dataclass(frozen=True, slots=True)
class Again:
    """What `again` found: a job, and items whose deadline passed while they waited to be tried again."""

    job: Job | None
    expired: tuple[Item, ...]


NOTHING = Again(None, ())


@dataclass(slots=True)
class _State:
    probing: bool = False
    probe_at: float = 0.0
    delay: float = FIRST_PROBE


Changed: TypeAlias = Callable[[str, bool, Reason | None], None]


class Fleet:
    """The devices, by name. Not thread-safe: the engine keeps it under its lock.

    `changed` is called with a device, whether it is in service now, and what was wrong with it.
    """

    def __init__(self, devices: Iterable[str], hang_seconds: float, changed: Changed) -> None:
        self._hang_seconds = hang_seconds
        self._changed = changed
        self._states = {device: _State() for device in devices}
        self._up = set(self._states)
        self._flights: dict[Flight, None] = {}  # a set that keeps its order
        self._jobs: list[Job] = []  # that failed and wait to be run again

    @property
    def serving(self) -> bool:
        """Whether any device is in service."""
        return bool(self._up)

    def up(self, device: str) -> bool:
        """Whether this device is in service."""
        return device in self._up

    @property
    def flying(self) -> bool:
        """Whether anything runs that was not given up."""
        return bool(self._flights)

    @property
    def flights(self) -> Iterable[Flight]:
        """What runs now."""
        return self._flights

    def busy(self, model: Model) -> bool:
        """Whether anything of this model runs or waits to be run again."""
        jobs = [*self._jobs, *(flight.job for flight in self._flights)]
        return any(job.batch.model is model for job in jobs)

    # -- a job's way -----------------------------------------------------------------------------------

    def again(self, device: str, now: float) -> Again:
        """The oldest job that waits to be run again and may be run here, without those nobody wants."""
        if not self._jobs:
            return NOTHING
        expired: list[Item] = []
        for job in list(self._jobs):
            if job.avoid == device and self._other(device):
                continue
            self._jobs.remove(job)
            wanted = []
            for item in job.batch.items:
                if item.deadline is not None and item.deadline <= now:
                    expired.append(item)
                elif item.waiters:
                    wanted.append(item)
            if wanted:
                batch = Batch(job.batch.model, tuple(wanted))
                return Again(replace(job, batch=batch), tuple(expired))
        return Again(None, tuple(expired))

    def launch(self, device: str, job: Job, predicted: float, now: float) -> Flight:
        """A job goes to a device, where it should take `predicted` seconds."""
        flight = Flight(job, device, now, predicted, now + max(self._hang_seconds, HANG_FACTOR * predicted))
        self._flights[flight] = None
        return flight

    def land(self, flight: Flight) -> bool:
        """A run has returned; False where it was given up before: its result must be ignored."""
        if flight not in self._flights:
            return False
        del self._flights[flight]
        return True

    def succeeded(self, flight: Flight, now: float) -> None:
        """A flight has landed with vectors."""
        state = self._states[flight.device]
        state.delay = max(FIRST_PROBE, state.delay / 2)
        if flight.job.blame and flight.job.avoid != flight.device:
            self._take_out(flight.job.avoid, "raised", now)

    def failed(self, flight: Flight, error: Exception, *, sick: bool, now: float) -> list[Failed]:
        """A flight has landed with an error; `sick` where its device fails on a text known to be good."""
        job, device = flight.job, flight.device
        if sick:
            self._take_out(device, "raised", now)
        if not job.retried and self._other(device):
            self._jobs.append(Job(job.batch, retried=True, avoid=device, blame=True))
            return []
        if sick:
            return [Failed(job.batch.items, Unavailable(f"device {device} failed; try another server"))]
        if len(job.batch.items) == 1:
            return [Failed(job.batch.items, error)]
        half = len(job.batch.items) // 2
        for items in (job.batch.items[:half], job.batch.items[half:]):
            self._jobs.append(Job(Batch(job.batch.model, items), job.retried))
        return []

    def due(self) -> float | None:
        """When the next flight will count as hung."""
        return min((flight.due for flight in self._flights), default=None)

    def hung(self, now: float) -> list[Failed]:
        """Give up the flights that are due, and take their devices out."""
        gone = []
        for flight in [flight for flight in self._flights if flight.due <= now]:
            job, device = flight.job, flight.device
            del self._flights[flight]
            self._take_out(device, "hung", now)
            seconds = now - flight.begun
            if not job.retried and self._other(device):
                self._jobs.append(Job(job.batch, retried=True, avoid=device))
                continue
            error: TrimtabError = Unavailable(
                f"device {device} did not answer in {seconds:.0f} s, and no other is in service: "
                "try another server"
            )
            if job.retried:  # two devices failed on it: a third server's would, too
                error = InternalError(
                    f"the texts were given up: device {device} did not answer in {seconds:.0f} s, after a "
                    "run of them had failed before. Send them one by one to find the one at fault"
                )
            gone.append(Failed(job.batch.items, error))
        return gone

    def clear(self) -> list[Item]:
        """Take out all that waits to be run again."""
        items = [item for job in self._jobs for item in job.batch.items]
        self._jobs.clear()
        return items

    # -- a device's way back -----------------------------------------------------------------------------

    def probe_in(self, device: str, now: float) -> float | None:
        """Seconds until the device should be probed; None while it is in service, or being probed."""
        state = self._states[device]
        return None if device in self._up or state.probing else max(0.0, state.probe_at - now)

    def probing(self, device: str) -> None:
        """A worker of the device probes it from now on."""
        self._states[device].probing = True

    def probed(self, device: str, *, well: bool, now: float) -> None:
        """A probe has returned: the device comes back, or is probed again later."""
        state = self._states[device]
        state.probing = False
        if well:
            self._up.add(device)
            self._changed(device, True, None)
        else:
            self._put_off(device, "probe", now)

    def _take_out(self, device: str, reason: Reason, now: float) -> None:
        if device in self._up:
            self._up.remove(device)
            self._put_off(device, reason, now)

    def _put_off(self, device: str, reason: Reason, now: float) -> None:
        state = self._states[device]
        state.probe_at = now + state.delay
        state.delay = min(LAST_PROBE, state.delay * 2)
        self._changed(device, False, reason)

    def _other(self, device: str) -> bool:
        return bool(self._up - {device})
