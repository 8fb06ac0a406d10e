"""What a front end may ask of the engine, and what it gets back: plain values, and nothing else.

The engine runs in the same process (local.py), but could run in another. So models and admitted requests have
numbers, nothing here is a closure or an object whose identity counts, and the queue's state is a snapshot.
Times are on time.monotonic's clock, which the processes of a machine share. Errors are those of
trimtab.errors (a code, a message and `retry_after`), and ItemError, with the position of an item.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from trimtab.errors import InternalError
from trimtab.kinds import Priority
from trimtab.values.column import Columns
from trimtab_server.engine.batch import Model, Payload, Wanted


class Turn(msgspec.Struct, frozen=True):
    """How a request is scheduled: for whom, how urgently, and until when."""

    tenant: str
    flow: str  # what takes turns: the tenant, or the connection if it has no name
    priority: Priority
    deadline: float | None


class AdmissionRequest(msgspec.Struct, frozen=True):
    """A request to be admitted: the most that it can take, before its texts are tokenised."""

    model: int
    turn: Turn
    tokens: int
    held: int  # more tokens, for its memory until it is answered


class ComputeRequest(msgspec.Struct, frozen=True):
    """Payloads to compute, and the outputs wanted of them.

    `admitted`: the number that `admit` returned; 0 for the server's own work, to which no limit applies.
    """

    admitted: int
    model: int
    turn: Turn
    payloads: Sequence[Payload]
    wanted: Wanted


class ItemError(InternalError):
    """An item of a request cannot be computed. The caller knows what the item is called.

    row: the item's position among the payloads. why: in a word.
    """

    def __init__(self, row: int, why: str) -> None:
        super().__init__(f"the encoder failed on item {row}: {why}")
        self.row = row
        self.why = why


class Computed(msgspec.Struct, frozen=True):
    """The outputs that a request wanted of its items, and the seconds they waited and took. The result is
    read-only: it may be cached, or shared with other requests."""

    result: Columns
    queue_seconds: float
    compute_seconds: float


class ModelPace(msgspec.Struct, frozen=True):
    """How fast all devices together work at one model's items now."""

    seconds: float  # for a second of computing, as measured on one of them
    drain_seconds: float  # until the queue is empty, of all tenants


class Pressure(msgspec.Struct, frozen=True):
    """The state of the queue, as of a moment ago."""

    run_seconds: float = 0.0  # of all runs so far
    workers: int = 0  # in service
    free_seconds: float = 0.0  # until the next worker is free
    wait_seconds: float = 0.0  # about how long interactive work that comes now will wait
    paces: Mapping[int, ModelPace] = {}  # by model
    # Seconds of computing ahead of each flow's next item; without flows that need not wait.
    ahead: Mapping[Priority, Mapping[str, float]] = {}
    # The flow that all unlisted ones count as, if too many flows wait. None: unlisted flows need not wait.
    crowd: str | None = None
    share: float = 1.0  # of the requests lately, those of the front end that is told

    def queue_seconds(self, model: int, flow: str, priority: Priority) -> float:
        """About how long an item of this flow would wait until its run begins.

        0 if no device is in service: there is nothing to wait for.
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
        """Load and warm a model on every device, then accept its payloads. Returns its number, which is never
        reused."""

    async def unload(self, model: int) -> None:
        """Answer what was already accepted, then forget the model. It may no longer be asked for."""

    async def admit(self, request: AdmissionRequest) -> int:
        """Admit a request. It holds room until the returned number is released.

        Raises InvalidArgument if the request alone exceeds a limit; ResourceExhausted if its tenant's quota
        is used up, or there is no room or not enough time.
        """

    async def compute(self, request: ComputeRequest) -> Computed:
        """The wanted outputs of the payloads: item i of each column belongs to payloads[i].

        Items that still wait at their deadline are dropped; the caller keeps a timer of its own. If the
        caller is cancelled, its items leave the queue, unless others wait for them.
        """

    def release(self, admitted: int, *, answered: bool) -> None:
        """The request is over and holds nothing. `answered`: it ran to its end, so its time tells how long
        the queue was."""

    def pressure(self) -> Pressure:
        """The last snapshot."""
