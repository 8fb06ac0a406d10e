"""The queue between requests and devices: one batcher under one lock, from which free workers take.

The event loop adds texts; worker threads pop batches by themselves, so that a free device never waits
for the loop to notice it. Results go back to the loop, which alone touches futures. What happens to a
batch that fails, and to its device, is the fleet's to say (fleet.py); which texts are computed together
for several requests, or not at all, is the sharing's (sharing.py). Both are kept under the same lock.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import DeadlineExceeded, NotFound, Unavailable
from trimtab.kinds import Priority
from trimtab_server.engine.batch import Batch, Ids, Item, Model
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.workers import OUT_OF_SERVICE, Workers
from trimtab_server.engine.queue.batcher import Batcher
from trimtab_server.engine.queue.cost import Cost
from trimtab_server.engine.queue.sharing import Sharing
from trimtab_server.engine.tickets import Computed, Ticket
from trimtab_server.observing.metrics import Metrics
from trimtab_server.turns import PIECE, Flow, Turns

# Tickets with the rows that a text fills of each, and the text's vector or what it has failed with.
Answer: TypeAlias = tuple[dict[Ticket, list[int]], NDArray[np.float32] | Exception]


class Engine:
    """Computes the vectors of token ids on whatever device is free.

    Called on the event loop: `serving` when the last device goes out of service, and when one is back;
    `retired` with a model that is not run any more, because it fails while others run well, and why.
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
    ) -> None:
        self._batcher = batcher
        self._sharing = sharing
        self._metrics = metrics
        self._lock = threading.Lock()  # guards the batcher, the sharing, the workers and the fields below
        self._open: set[Model] = set()
        self._answers: deque[tuple[list[Answer], float, float]] = deque()  # on their way to the event loop
        self._turns = turns or Turns()
        self._untold = 0  # texts of which no worker was told yet
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        metrics.watch(lambda: len(batcher), lambda: batcher.tokens, lambda: sharing.bytes)
        self._workers = Workers(
            devices, self._lock, hang_seconds, metrics, load_seconds=load_seconds,
            pop=self._pop,
            answer=self._answer,
            tell=self._tell,
            serving=lambda up: self._loop.call_soon_threadsafe(partial(serving, up)),
            retired=lambda model, why: self._loop.call_soon_threadsafe(partial(retired, model, why)),
        )  # fmt: skip

    def start(self) -> None:
        """Start every device's workers."""
        self._workers.start()

    async def load(self, model: Model) -> Cost:
        """Load and warm a model on every device, then accept its texts."""
        cost = await self._workers.roster.load(model)
        with self._lock:
            self._batcher.open(model, cost)
            self._open.add(model)
        return cost

    async def unload(self, model: Model) -> None:
        """Answer what was already accepted, then forget the model. Nobody may add to it any more."""
        await asyncio.to_thread(self._wait_idle, model)
        with self._lock:
            self._open.remove(model)
            self._batcher.close(model)
            self._sharing.close(model)
        self._workers.roster.unload(model)

    def queue_seconds(self, model: Model, flow: str, priority: Priority, coming: float = 0.0) -> float:
        """About how long a text of this flow will wait until the run begins that computes it, behind what
        waits and so many tokens that are coming.

        0 where no device is in service: there is nothing to wait for.
        """
        with self._lock:
            if not self._workers.serving or model not in self._open:
                return 0.0
            ahead = 0.0
            if coming or len(self._batcher):
                ahead = self._seconds(model, self._batcher.ahead(flow, priority), coming)
            return self._workers.free_seconds(time.monotonic()) + ahead

    def pressure(self) -> tuple[float, int, float]:
        """Seconds of all runs so far; workers in service; about how long what is interactive will take."""
        with self._lock:
            workers, batcher = self._workers, self._batcher
            seconds = batcher.waiting_seconds("interactive")
            waiting = [model for model in self._open if batcher.waiting(model)] if workers.serving else []
            wait = max((self._seconds(model, seconds) for model in waiting), default=0.0)
            return workers.run_seconds, workers.in_service, wait + workers.free_seconds(time.monotonic())

    def waiting_seconds(self, model: Model) -> float:
        """About how long all that waits, of whomever, takes to compute at this model's pace."""
        with self._lock:
            if not self._workers.serving or model not in self._open:
                return 0.0
            return self._seconds(model, 0.0, self._batcher.tokens)

    async def compute(
        self,
        model: Model,
        texts: Sequence[Ids],
        deadline: float | None,
        *,
        tenant: str = "",
        flow: str = "",
        priority: Priority = "interactive",
    ) -> Computed:
        """The vectors of `texts`, row i for texts[i], by turns with other flows; a tenant is one by default.

        What still waits at `deadline`, on time.monotonic's clock, is not computed any more; the
        caller has to keep its own timer. A caller that is cancelled takes its texts out of the queue,
        but for those that others wait for, too.
        """
        ticket = Ticket(model, len(texts), deadline, time.monotonic(), self._loop.create_future())
        flow = flow or tenant
        try:
            if len(texts) <= PIECE:
                self._enter(ticket, model, texts, 0, tenant, flow, priority)
            for start in range(0, len(texts), PIECE) if len(texts) > PIECE else ():
                if ticket.done:  # one of its texts has failed
                    break
                turn, part = Flow(flow, small=False), texts[start : start + PIECE]
                await self._turns.do(turn, self._enter, ticket, model, part, start, tenant, flow, priority)
            self._metrics.shared(model.encoder, model.version, "cache", ticket.remembered)
            joined = len(texts) - ticket.remembered - ticket.queued
            self._metrics.shared(model.encoder, model.version, "in_flight", joined)
            return await ticket.wait()
        finally:
            if ticket.left:
                ticket.give_up()
                self._leave(ticket)

    def stop(self) -> None:
        """Stop the workers, each after its current batch. Call it when nothing is in flight any more."""
        with self._lock:
            self._stopping = True
        self._workers.stop()

    def _enter(
        self,
        ticket: Ticket,
        model: Model,
        texts: Sequence[Ids],
        start: int,
        tenant: str,
        flow: str,
        priority: Priority,
    ) -> None:
        """Queue what is neither remembered nor on its way, of texts from the ticket's row `start` on."""
        with self._lock:
            if model not in self._open:
                raise NotFound(f"encoder {model.encoder} version {model.version} was unloaded; try again")
            if self._stopping:
                raise Unavailable("the server is shutting down: try another one")
            if (why := self._workers.retired(model)) is not None:
                raise Unavailable(str(why))
            if not self._workers.serving:
                raise Unavailable(str(OUT_OF_SERVICE))
            queued = self._queue(ticket, model, texts, start, tenant, flow, priority)
        if queued:
            ticket.queued += queued
            if not self._untold:
                self._loop.call_soon(self._notify)
            self._untold += queued

    def _queue(
        self,
        ticket: Ticket,
        model: Model,
        texts: Sequence[Ids],
        start: int,
        tenant: str,
        flow: str,
        priority: Priority,
    ) -> int:
        sharing, batcher, queued = self._sharing, self._batcher, 0
        flow = batcher.tenant(flow)
        for row, ids in enumerate(texts, start):
            key = sharing.key(model, ids, tenant)
            vector = sharing.recall(key)
            if vector is not None:
                ticket.remember(row, vector)
                continue
            item = sharing.flying(key, priority)
            if item is None:
                item = sharing.begin(ticket, row, key, ids, flow, priority)
                batcher.add(item)
                queued += 1
            elif sharing.join(ticket, row, item):
                batcher.postpone(item)
            ticket.items.append(item)
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

    def _seconds(self, model: Model, measured: float, tokens: float = 0.0) -> float:
        """How long so many seconds of computing, as they were measured, and tokens take all devices now."""
        tokens += measured / self._batcher.cost(model).token_seconds
        return tokens / max(self._workers.tokens_per_second(model), 1e-9)

    def _pop(self, now: float, costs: Mapping[Model, Cost]) -> Batch | None:
        popped = self._batcher.pop(now, costs)
        if popped.expired:  # nobody may join them any more
            self._answer(popped.expired, DeadlineExceeded("the deadline passed in the queue"), now)
        return popped.batch

    def _answer(self, items: Sequence[Item], outcome: NDArray[np.float32] | Exception, begun: float) -> None:
        answers: list[Answer]
        if isinstance(outcome, Exception):
            answers = [(self._sharing.finish(item, None), outcome) for item in items]
        else:
            answers = [
                (self._sharing.finish(item, vector), vector)
                for item, vector in zip(items, outcome, strict=True)
            ]
        self._answers.append((answers, begun, time.monotonic()))

    def _tell(self) -> None:
        if self._answers:
            self._loop.call_soon_threadsafe(self._deliver)

    # -- on the event loop -------------------------------------------------------------------------------

    def _notify(self) -> None:
        """Wake workers for all that one turn of the loop has queued: to wake one costs more than to queue a
        text, and whoever is woken by the first of many takes that alone."""
        with self._lock:
            self._workers.notify(self._untold)
        self._untold = 0

    def _deliver(self) -> None:
        while self._answers:
            answers, begun, now = self._answers.popleft()
            for waiters, outcome in answers:
                for ticket, rows in waiters.items():
                    if isinstance(outcome, Exception):
                        ticket.fail(rows, outcome)
                    else:
                        ticket.fill(rows, outcome, begun, now)
