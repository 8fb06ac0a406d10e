"""The queue between requests and devices: one batcher under one lock, from which free workers take.

The event loop adds items; worker threads pop batches by themselves, so that a free device never waits
for the loop to notice it. Results go back to the loop, which alone touches futures.
"""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InternalError, NotFound, Unavailable
from trimtab_server.batch import Batch, Ids, Item, Model
from trimtab_server.batcher import Batcher
from trimtab_server.cost import Cost
from trimtab_server.devices import Device, Run
from trimtab_server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Computed:
    """The vectors of one request, float32 (n, dimensions), and the seconds they waited and took."""

    vectors: NDArray[np.float32]
    queue_seconds: float
    compute_seconds: float


class _Ticket:
    """One request's stake in the engine: where its rows go, and who waits for them."""

    def __init__(self, model: Model, texts: int, now: float, future: asyncio.Future[None]) -> None:
        self.vectors = np.empty((texts, model.dimensions), np.float32)
        self.left = texts
        self.future = future
        self.added = now
        self.begun: float | None = None
        self.ended = now


class Engine:
    """Computes the vectors of token ids on whatever device is free."""

    def __init__(self, batcher: Batcher, devices: Sequence[Device], metrics: Metrics) -> None:
        self._batcher = batcher
        self._devices = devices
        self._metrics = metrics
        self._lock = threading.Lock()  # guards the batcher and the fields below
        self._work = threading.Condition(self._lock)  # there is something to take
        self._idle = threading.Condition(self._lock)  # something was finished
        self._running: dict[Model, int] = {}  # batches on devices
        self._costs: dict[Model, Cost] = {}
        self._stopping = False
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Start every device's workers."""
        for device in self._devices:
            device.start(self._take, self._done)

    async def load(self, model: Model) -> Cost:
        """Load and warm a model on every device, then accept its texts."""
        costs = [await asyncio.to_thread(device.load, model) for device in self._devices]
        slowest = max(costs, key=lambda cost: cost.seconds(1, 128, 128))
        with self._lock:
            self._batcher.open(model, slowest)
            self._running[model] = 0
            self._costs[model] = slowest
        return slowest

    async def unload(self, model: Model) -> None:
        """Answer what was already accepted, then forget the model. Nobody may add to it any more."""
        await asyncio.to_thread(self._wait_idle, model)
        with self._lock:
            self._batcher.close(model)
            del self._running[model], self._costs[model]
        for device in self._devices:
            device.unload(model)

    def backlog_seconds(self, model: Model) -> float:
        """About how long the texts that wait now will keep the devices busy."""
        workers = sum(device.place.workers for device in self._devices)
        with self._lock:
            return self._costs[model].token_seconds * self._batcher.tokens / workers

    async def compute(self, model: Model, texts: Sequence[Ids], deadline: float | None) -> Computed:
        """The vectors of `texts`, row i for texts[i].

        What still waits at `deadline`, on time.monotonic's clock, is not computed any more; the
        caller has to keep its own timer. A caller that is cancelled takes its texts out of the queue.
        """
        now = time.monotonic()
        ticket = _Ticket(model, len(texts), now, self._loop.create_future())
        items = [Item(model, ids, ticket, row, deadline) for row, ids in enumerate(texts)]
        with self._lock:
            if model not in self._running:
                raise NotFound(f"encoder {model.encoder} version {model.version} was unloaded; try again")
            if self._stopping:
                raise Unavailable("the server is shutting down: try another one")
            for item in items:
                self._batcher.add(item)
            self._work.notify(len(items))
        self._gauge()
        try:
            await ticket.future
        finally:
            if ticket.left:
                with self._lock:
                    self._batcher.cancel(items)
                    self._idle.notify_all()
                self._gauge()
        begun = ticket.begun or ticket.ended
        return Computed(ticket.vectors, begun - ticket.added, ticket.ended - begun)

    def stop(self) -> None:
        """Stop the workers, each after its current batch. Call it when nothing is in flight any more."""
        with self._lock:
            self._stopping = True
            self._work.notify_all()
        for device in self._devices:
            device.join()

    def _wait_idle(self, model: Model) -> None:
        with self._lock:
            self._idle.wait_for(lambda: not self._batcher.waiting(model) and not self._running[model])

    # -- on worker threads -------------------------------------------------------------------------

    def _take(self) -> Batch | None:
        with self._lock:
            while not self._stopping:
                batch = self._batcher.pop(time.monotonic()).batch  # who expired was told by its own timer
                if batch is not None:
                    self._running[batch.model] += 1
                    self._begin(batch)
                    return batch
                self._idle.notify_all()
                self._work.wait()
        return None

    @staticmethod
    def _begin(batch: Batch) -> None:
        now = time.monotonic()
        for item in batch.items:
            ticket: _Ticket = item.ticket
            if ticket.begun is None:
                ticket.begun = now

    def _done(self, batch: Batch, runs: list[Run]) -> None:
        with self._lock:
            self._running[batch.model] -= 1
            self._idle.notify_all()
        for run in runs:
            self._metrics.batch(run.batch, run.device, run.seconds)
        self._loop.call_soon_threadsafe(self._deliver, runs, time.monotonic())

    # -- on the event loop -------------------------------------------------------------------------

    def _deliver(self, runs: list[Run], now: float) -> None:
        for run in runs:
            for position, item in enumerate(run.batch.items):
                ticket: _Ticket = item.ticket
                if ticket.future.done():  # cancelled, expired or failed meanwhile: nobody wants the row
                    continue
                if isinstance(run.outcome, Exception):
                    error = InternalError(
                        f"the encoder failed on texts[{item.row}]: {type(run.outcome).__name__}"
                    )
                    error.__cause__ = run.outcome
                    ticket.future.set_exception(error)
                    continue
                ticket.vectors[item.row] = run.outcome[position]
                ticket.left -= 1
                if ticket.left == 0:
                    ticket.ended = now
                    ticket.future.set_result(None)
        self._gauge()

    def _gauge(self) -> None:
        self._metrics.queued(len(self._batcher), self._batcher.tokens)
