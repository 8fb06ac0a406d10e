"""The queue between requests and devices: one batcher under one lock, from which free workers take.

The event loop adds items; worker threads take batches themselves, so that a free device never waits for the
loop. Results go back to the loop, and only the loop touches futures. fleet.py decides what happens to a
failed batch and its device; sharing.py, which items are computed once for several requests, or not at all.
Both are under the same lock.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from trimtab.errors import DeadlineExceeded, NotFound, Unavailable
from trimtab.kinds import Priority
from trimtab.values.column import Columns
from trimtab_server.engine.batch import Batch, Item, Model, Payload, Wanted
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.workers import OUT_OF_SERVICE, Workers
from trimtab_server.engine.port import Computed, ModelPace, Pressure, Turn
from trimtab_server.engine.queue.batcher import CROWD, Batcher
from trimtab_server.engine.queue.companions import Companions
from trimtab_server.engine.queue.cost import Cost
from trimtab_server.engine.queue.lane import WEIGHTS
from trimtab_server.engine.queue.sharing import Sharing
from trimtab_server.engine.tickets import Ticket
from trimtab_server.observing.metrics import Metrics
from trimtab_server.turns import PIECE, Flow, Turns

# Tickets, and the rows that an item fills in each.
Waiters: TypeAlias = dict[Ticket, list[int]]
# For the items of a batch, in order: who waits for each; their result, or the error they failed with; when
# the run began, and when it ended.
Answers: TypeAlias = tuple[list[Waiters], Columns | Exception, float, float]


class Engine:
    """Computes payloads on whichever device is free.

    Called on the event loop: `serving` when the last device goes out of service, and when one is back;
    `retired` with a model that is no longer run, because it fails while others run well, and why. `idle` is a
    clock that counts the seconds in which the cores have nothing to do; None: calls have a core to
    themselves, and no worker waits for companions (queue/companions.py).
    """

    def __init__(
        self,
        batcher: Batcher,
        sharing: Sharing[Ticket],
        devices: Sequence[Device],
        metrics: Metrics,
        *,
        hang_seconds: float,
        load_seconds: float,
        serving: Callable[[bool], None],
        retired: Callable[[Model, str], None] = lambda model, why: None,
        turns: Turns | None = None,
        idle: Callable[[], float] | None = None,
    ) -> None:
        self._batcher = batcher
        self._companions = Companions()
        self._idle = idle
        self._sharing = sharing
        self._metrics = metrics
        self._lock = threading.Lock()  # guards the batcher, the sharing, the workers and the fields below
        self._open: set[Model] = set()
        self._answers: deque[Answers] = deque()  # on their way to the event loop
        self._turns = turns or Turns()
        self._untold = 0  # queued items that no worker was notified of yet
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        metrics.watch(lambda: len(batcher), lambda: batcher.units, lambda: sharing.bytes)
        self._workers = Workers(
            devices, self._lock, hang_seconds, metrics, load_seconds=load_seconds,
            pop=self._pop,
            patience=self._patience,
            answer=self._answer,
            tell=self._tell,
            serving=lambda up: self._loop.call_soon_threadsafe(partial(serving, up)),
            retired=lambda model, why: self._loop.call_soon_threadsafe(partial(retired, model, why)),
        )  # fmt: skip

    def start(self) -> None:
        """Start every device's workers."""
        self._workers.start()

    async def load(self, model: Model) -> Cost:
        """Load and warm a model on every device, then accept its payloads."""
        cost = await self._workers.roster.load(model)
        with self._lock:
            self._batcher.open(model, cost)
            self._open.add(model)
        return cost

    async def unload(self, model: Model) -> None:
        """Answer what was already accepted, then forget the model. No more payloads may be added."""
        await asyncio.to_thread(self._wait_idle, model)
        with self._lock:
            self._open.remove(model)
            self._batcher.close(model)
            self._sharing.close(model)
        self._workers.roster.unload(model)

    def queue_seconds(self, model: Model, flow: str, priority: Priority, coming: float = 0.0) -> float:
        """About how long an item of this flow would wait until its run begins, behind the queue and `coming`
        more units.

        0 if no device is in service: there is nothing to wait for.
        """
        with self._lock:
            if not self._workers.serving or model not in self._open:
                return 0.0
            ahead = 0.0
            if coming or self._batcher.units:
                ahead = self._seconds(model, self._batcher.ahead(flow, priority), coming)
            return self._workers.capacity.free_seconds(time.monotonic()) + ahead

    def pressure(self, models: Mapping[int, Model]) -> Pressure:
        """The state of the queue now, for these models by their numbers."""
        with self._lock:
            workers, batcher = self._workers, self._batcher
            capacity = workers.capacity
            free = capacity.free_seconds(time.monotonic())
            if not workers.serving:
                return Pressure(capacity.run_seconds, capacity.workers, free, free)
            there = {number: model for number, model in models.items() if model in self._open}
            seconds = batcher.waiting_seconds("interactive")
            waiting = [model for model in there.values() if batcher.waiting(model)]
            wait = max((self._seconds(model, seconds) for model in waiting), default=0.0)
            return Pressure(
                capacity.run_seconds,
                capacity.workers,
                free,
                wait + free,
                {
                    number: ModelPace(self._seconds(model, 1.0), self._seconds(model, 0.0, batcher.units))
                    for number, model in there.items()
                },
                {priority: batcher.all_ahead(priority) for priority in WEIGHTS},
                CROWD if batcher.crowded else None,
            )

    async def compute(
        self,
        model: Model,
        payloads: Sequence[Payload],
        wanted: Wanted,
        turn: Turn,
    ) -> Computed:
        """The `wanted` outputs of `payloads`: see EnginePort."""
        ticket = Ticket(wanted, len(payloads), turn.deadline, time.monotonic(), self._loop.create_future())
        try:
            if len(payloads) <= PIECE:
                self._enter(ticket, model, payloads, 0, turn)
            for start in range(0, len(payloads), PIECE) if len(payloads) > PIECE else ():
                if ticket.done:  # one of its items has failed
                    break
                flow, part = Flow(turn.flow, small=False), payloads[start : start + PIECE]
                await self._turns.do(flow, self._enter, ticket, model, part, start, turn)
            if ticket.queued < len(payloads):
                self._metrics.shared(model.encoder, model.version, "cache", ticket.cached)
                joined = len(payloads) - ticket.cached - ticket.queued
                self._metrics.shared(model.encoder, model.version, "in_flight", joined)
            await ticket.future
            return await asyncio.to_thread(ticket.computed) if ticket.large else ticket.computed()
        finally:
            if ticket.left:
                ticket.give_up()
                self._leave(ticket)

    def stop(self) -> None:
        """Stop the workers, each after its current batch. To be called when nothing is in flight."""
        with self._lock:
            self._stopping = True
        self._workers.stop()

    def _enter(
        self,
        ticket: Ticket,
        model: Model,
        payloads: Sequence[Payload],
        start: int,
        turn: Turn,
    ) -> None:
        """Queue the payloads that are neither cached nor in flight, for the ticket's rows from `start` on."""
        with self._lock:
            if model not in self._open:
                raise NotFound(f"encoder {model.encoder} version {model.version} was unloaded; try again")
            if self._stopping:
                raise Unavailable("the server is shutting down: try another one")
            if (why := self._workers.retired(model)) is not None:
                raise Unavailable(str(why))
            if not self._workers.serving:
                raise Unavailable(str(OUT_OF_SERVICE))
            queued = self._queue(ticket, model, payloads, start, turn)
        if queued:
            ticket.queued += queued
            if not self._untold:
                self._loop.call_soon(self._notify)
            self._untold += queued

    def _queue(
        self,
        ticket: Ticket,
        model: Model,
        payloads: Sequence[Payload],
        start: int,
        turn: Turn,
    ) -> int:
        sharing, batcher, queued = self._sharing, self._batcher, 0
        flow, wanted, priority = batcher.tenant(turn.flow), ticket.wanted, turn.priority
        for row, payload in enumerate(payloads, start):
            key = sharing.key(model, payload, wanted, turn.tenant)
            cached = sharing.recall(key)
            if cached is not None:
                ticket.fill_from_cache(row, cached)
                continue
            item = sharing.flying(key, priority)
            if item is None:
                item = sharing.begin(ticket, row, key, payload, flow, priority)
                batcher.add(item)
                queued += 1
            elif sharing.join(ticket, row, item):
                batcher.postpone(item)
            ticket.items.append(item)
        self._companions.came(queued)
        return queued

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            for item in dict.fromkeys(ticket.items):  # a text that a request repeats is one item
                deadline = item.deadline
                if self._sharing.leave(ticket, item):
                    self._batcher.cancel((item,))
                elif item.deadline != deadline:
                    self._batcher.postpone(item)
            self._workers.idle.notify_all()

    def _wait_idle(self, model: Model) -> None:
        with self._lock:
            self._workers.idle.wait_for(
                lambda: self._stopping or not (self._batcher.waiting(model) or self._workers.busy(model))
            )

    # -- on any thread, with the lock held ---------------------------------------------------------------

    def _seconds(self, model: Model, measured: float, units: float = 0.0) -> float:
        """How long all devices need now for so many seconds of computing, as measured, and so many units."""
        units += measured / self._batcher.cost(model).unit_seconds
        return units / max(self._workers.capacity.units_per_second(model), 1e-9)

    def _pop(self, now: float, costs: Mapping[Model, Cost]) -> Batch | None:
        popped = self._batcher.pop(now, costs)
        if popped.expired:  # no request can join them now
            self._answer(popped.expired, DeadlineExceeded("the deadline passed in the queue"), now)
        if popped.batch is not None:
            self._companions.went()
        return popped.batch

    def _patience(self) -> float:
        if self._idle is None:
            return 0.0
        return self._companions.patience(len(self._batcher), time.monotonic(), self._idle())

    def _answer(self, items: Sequence[Item], outcome: Columns | Exception, begun: float) -> None:
        result, now = None if isinstance(outcome, Exception) else outcome, time.monotonic()
        if self._idle is not None and result is not None and items[0].model in self._open:
            run_seconds = self._batcher.cost(items[0].model).run_seconds
            self._companions.answered(len(items), run_seconds, now - begun, now, self._idle())
        waiters = [self._sharing.finish(item, result, place) for place, item in enumerate(items)]
        self._answers.append((waiters, outcome, begun, now))

    def _tell(self) -> None:
        if self._answers:
            self._loop.call_soon_threadsafe(self._deliver)

    # -- on the event loop -------------------------------------------------------------------------------

    def _notify(self) -> None:
        """Wake workers once for all items that one pass of the loop has queued: waking one costs more than
        queuing an item, and a worker woken by the first item would take only that one."""
        with self._lock:
            self._workers.notify(self._untold)
        self._untold = 0

    def _deliver(self) -> None:
        while self._answers:
            answers, outcome, begun, now = self._answers.popleft()
            for place, waiters in enumerate(answers):
                for ticket, rows in waiters.items():
                    if isinstance(outcome, Exception):
                        ticket.fail(rows, outcome)
                    else:
                        ticket.fill(rows, outcome, place, begun, now)
