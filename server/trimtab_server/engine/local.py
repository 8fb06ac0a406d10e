"""The engine in the same process as its front end: admission, and behind it the queue."""

import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from trimtab.errors import NotFound
from trimtab_server.engine.admission.admission import Admission, Reservation
from trimtab_server.engine.batch import Model
from trimtab_server.engine.engine import Engine
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.port import AdmissionRequest, Computed, ComputeRequest, EnginePort, Pressure
from trimtab_server.engine.queue.batcher import Batcher
from trimtab_server.engine.queue.sharing import Sharing
from trimtab_server.engine.tickets import Ticket
from trimtab_server.observing.metrics import Metrics
from trimtab_server.turns import Turns

# How long a snapshot of the queue is reused.
FRESH_SECONDS = 0.01


class LocalEngine(EnginePort):
    """Knows models and admitted requests by their numbers. For one event loop.

    Called there: `serving` when the last device goes out of service, and when one is back; `retired` with the
    number of a model that is no longer run, because it fails while others run well, and why. `idle`: see
    Engine.
    """

    def __init__(
        self,
        batcher: Batcher,
        sharing: Sharing[Ticket],
        devices: Sequence[Device],
        admission: Admission,
        metrics: Metrics,
        *,
        hang_seconds: float,
        load_seconds: float,
        serving: Callable[[bool], None],
        retired: Callable[[int, str], None],
        turns: Turns | None = None,
        idle: Callable[[], float] | None = None,
    ) -> None:
        self.queue = Engine(
            batcher, sharing, devices, metrics,
            hang_seconds=hang_seconds, load_seconds=load_seconds,
            serving=serving, retired=self._retired, turns=turns, idle=idle,
        )  # fmt: skip
        self._admission = admission
        self._tell_retired = retired
        self._next = itertools.count(1)
        self._models: dict[int, Model] = {}
        self._reservations: dict[int, Reservation] = {}
        self._pressure = Pressure()
        self._pressed = float("-inf")  # when the snapshot was taken

    def start(self) -> None:
        """Start every device's workers."""
        self.queue.start()

    def stop(self) -> None:
        """Stop the workers, each after its current batch. To be called when nothing is in flight."""
        self.queue.stop()

    async def load(self, model: Model) -> int:
        await self.queue.load(model)
        number = next(self._next)
        self._models[number] = model
        return number

    async def unload(self, model: int) -> None:
        await self.queue.unload(self._models[model])
        del self._models[model]

    async def admit(self, request: AdmissionRequest) -> int:
        model, turn = self._model(request.model), request.turn

        def queue_seconds(coming: float) -> float:
            return self.queue.queue_seconds(model, turn.flow, turn.priority, coming)

        reservation = self._admission.admit(
            request.tokens, queue_seconds, turn.deadline, turn.tenant, request.held, turn.flow
        )
        number = next(self._next)
        self._reservations[number] = reservation
        return number

    def compute(self, request: ComputeRequest) -> Coroutine[Any, Any, Computed]:
        payloads = request.payloads
        if request.admitted:
            units = payloads[0].units if len(payloads) == 1 else sum([each.units for each in payloads])
            self._reservations[request.admitted].settle(units)
        return self.queue.compute(self._model(request.model), payloads, request.wanted, request.turn)

    def release(self, admitted: int, *, answered: bool) -> None:
        self._reservations.pop(admitted).end(answered=answered)

    def pressure(self) -> Pressure:
        now = time.monotonic()
        if now - self._pressed >= FRESH_SECONDS:
            self._pressed = now
            self._pressure = self.queue.pressure(self._models)
        return self._pressure

    def _model(self, number: int) -> Model:
        model = self._models.get(number)
        if model is None:
            raise NotFound("the encoder was unloaded while the request was on its way; try again")
        return model

    def _retired(self, model: Model, why: str) -> None:
        for number in [number for number, each in self._models.items() if each is model]:
            self._tell_retired(number, why)
