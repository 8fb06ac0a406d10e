"""What a front end may ask of the engine, and what it is told: plain values, and nothing else.

The engine runs in the same process (local.py), and may run in another one. So models and admitted requests
go by numbers, nothing here is a closure or an object whose identity counts, and a snapshot tells of the
queue. Times are on time.monotonic's clock, which the processes of a machine share. Errors are those of
trimtab.errors: a code, a message and `retry_after`; and ItemError, with the place of an item.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from trimtab.errors import InternalError
from trimtab.kinds import Priority
from trimtab.values.column import Columns
from trimtab_server.engine.batch import Model, Payload, Wanted


class Turn(msgspec.Struct, frozen=True):
    """Whose turn it must be for a request, and until when."""

    tenant: str
    flow: str  # with whom the tenant's calls take turns: itself, or a connection where it has no name
    priority: Priority
    deadline: float | None


class Ask(msgspec.Struct, frozen=True):
    """A request that wants to be let in: what it takes at most, before anybody has looked at its texts."""

    model: int
    turn: Turn
    tokens: int
    held: int  # tokens beside these, for the memory that it takes until it is answered


class Work(msgspec.Struct, frozen=True):
    """What is wanted of some payloads.

    `admitted`: the number that `admit` gave; 0 for the server's own work, which no limit refuses.
    """

    admitted: int
    model: int
    turn: Turn
    payloads: Sequence[Payload]
    wanted: Wanted


class ItemError(InternalError):
    """An item of a request cannot be computed. Who asked says how the item is called.

    row: the item's place among the payloads. why: in a word.
    """

    def __init__(self, row: int, why: str) -> None:
        super().__init__(f"the encoder failed on item {row}: {why}")
        self.row = row
        self.why = why


class Computed(msgspec.Struct, frozen=True):
    """What a request wanted of its items, and the seconds they waited and took. Nobody may write to the
    result: it may be remembered, or be others' as well."""

    result: Columns
    queue_seconds: float
    compute_seconds: float


class Pace(msgspec.Struct, frozen=True):
    """How fast all devices together work at one model's items now."""

    seconds: float  # for a second of computing, as it was measured on one of them
    drain_seconds: float  # until nothing waits any more, of any tenant


class Pressure(msgspec.Struct, frozen=True):
    """How much waits for the devices, as of a moment ago."""

    run_seconds: float = 0.0  # of all runs so far
    workers: int = 0  # in service
    free_seconds: float = 0.0  # until the next worker is free
    wait_seconds: float = 0.0  # about how long interactive work that comes now will take to be begun
    paces: Mapping[int, Pace] = {}  # by model
    # Seconds of computing before the next item of each flow that would have to wait for any.
    ahead: Mapping[Priority, Mapping[str, float]] = {}
    # Where so many flows wait that all others are one: which. None: those that are not listed need not wait.
    crowd: str | None = None

    def queue_seconds(self, model: int, flow: str, priority: Priority) -> float:
        """About how long an item of this flow will wait until the run begins that computes it.

        0 where no device is in service: there is nothing to wait for.
        """
        pace = self.paces.get(model)
        if pace is None:
            return 0.0
        ahead = self.ahead.get(priority, {})
        seconds = ahead.get(flow)
        if seconds is None:
            seconds = 0.0 if self.crowd is None else ahead.get(self.crowd, 0.0)
        return self.free_seconds + pace.seconds * seconds

    def drain_seconds(self, model: int) -> float:
        """How long it takes to drain the queue, all tenants, at this model's pace."""
        pace = self.paces.get(model)
        return 0.0 if pace is None else pace.drain_seconds


class EnginePort(Protocol):
    """Admits requests and computes them on whatever device is free."""

    async def load(self, model: Model) -> int:
        """Load and warm a model on every device, then accept its payloads. Returns its number, which no other
        model is ever given."""

    async def unload(self, model: int) -> None:
        """Answer what was already accepted, then forget the model. Nobody may ask for it any more."""

    async def admit(self, ask: Ask) -> int:
        """Room for a request, until it is released by the number returned.

        Raises InvalidArgument where the request alone is over a limit, and ResourceExhausted where its tenant
        has used up its quota, or there is no room beside the others, or no time.
        """

    async def compute(self, work: Work) -> Computed:
        """What is wanted of the payloads: item i of each column is payloads[i]'s.

        What still waits at its deadline is not computed any more; the caller keeps a timer of its own. A
        caller that is cancelled takes its items out of the queue, but for those that others wait for, too.
        """

    def release(self, admitted: int, *, answered: bool) -> None:
        """The request is over, and holds nothing. `answered`: it ran to its end, so that its time tells
        how long the queue was."""

    def pressure(self) -> Pressure:
        """The last snapshot."""
