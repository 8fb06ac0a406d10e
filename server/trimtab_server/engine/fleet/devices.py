"""A device: a place with the graphs of all loaded models."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from trimtab.values.column import Columns
from trimtab_server import stopping
from trimtab_server.engine.batch import Model, Payload, Wanted, collated
from trimtab_server.engine.fleet.homes import Home
from trimtab_server.engine.fleet.measuring import CostCache, measure
from trimtab_server.engine.fleet.places import Place, hardware
from trimtab_server.engine.queue.cost import Cost
from trimtab_server.engine.runners import opening
from trimtab_server.engine.runners.runner import GraphError, NotReopenedError, Runner, checked

log = logging.getLogger(__name__)

# The units of the item that a device is probed with.
PROBE_UNITS = 8
# Other models that are probed to tell a bad model from a bad device.
MOST_PROBED = 3


class Device:
    """One place: a runner for each loaded model, and threads to run them on.

    Its home is restarted if it holds more than `max_resident_bytes`; 0 means no limit.
    """

    def __init__(
        self,
        place: Place,
        home: Home,
        cost_cache: CostCache | None = None,
        max_resident_bytes: int = 0,
        hang_seconds: float = 10.0,
    ) -> None:
        self.place = place
        self.name = str(place)
        self.home = home
        self.costs: dict[Model, Cost] = {}  # of the models that are loaded here
        self._cost_cache = cost_cache
        self._max_resident_bytes = max_resident_bytes
        self._hang_seconds = hang_seconds
        self._runners: dict[Model, Runner] = {}
        self._open_seconds: dict[Model, float] = {}

    @property
    def restore_seconds(self) -> float:
        """About how long a restart takes, with all models; infinity if it cannot be restarted."""
        return sum(self._open_seconds.copy().values()) if self.home.restarts else math.inf

    @property
    def too_large(self) -> bool:
        """Whether its home holds more memory than it may."""
        return 0 < self._max_resident_bytes < self.home.resident_bytes

    @property
    def stale(self) -> bool:
        """Whether its home has to be restarted."""
        return self.home.lost or self.too_large

    def load(self, model: Model, step: Callable[[], None] = lambda: None) -> None:
        """Open a graph, warm it and measure its cost. Blocks.

        `step` is called before each run and at the end; if it raises, nothing is loaded.
        """
        runner = self._open(model)

        def run(payloads: Sequence[Payload]) -> object:
            step()
            return runner.run(collated(payloads), model.names)

        try:
            if self._cost_cache is None:
                cost = measure(run, model.sample)
            else:
                # Moving numbers to another process and back takes time, too.
                kind = f"{self.place.kind} in a process" if self.home.restarts else self.place.kind
                cost = self._cost_cache.measure(
                    run, model.sample, model.digest, kind, hardware(self.place), opening.version(model),
                )  # fmt: skip
            step()
        except BaseException:
            self.home.close(runner)
            raise
        self._runners[model] = runner
        self.costs[model] = cost

    def unload(self, model: Model) -> None:
        """Forget a model; no further batch of it may come."""
        self.costs.pop(model, None)
        self._open_seconds.pop(model, None)
        runner = self._runners.pop(model, None)
        if runner is not None:
            self.home.close(runner)

    def start(self, work: Callable[[], None], ended: Callable[[], None]) -> list[threading.Thread]:
        """Start `work` on a thread for each of the place's workers; `ended` is passed on to its home."""

        def pinned(core: int | None) -> None:
            if core is not None:
                os.sched_setaffinity(0, {core})  # of this thread alone
            work()

        self.home.start(ended)
        threads = []
        for number in range(self.place.workers):
            core = self.place.cores[number] if self.place.cores else None
            # A daemon, because a run that hangs would keep the process from ending.
            threads.append(
                threading.Thread(target=pinned, args=(core,), name=f"{self.name}-{number}", daemon=True)
            )
            threads[-1].start()
        return threads

    def run(self, model: Model, payloads: Sequence[Payload], wanted: Wanted) -> Columns | Exception:
        """The wanted outputs of payloads, or the error that their run has raised, for the caller to judge."""
        try:
            result = self._runners[model].run(collated(payloads), wanted)
            return checked(result, model, wanted, len(payloads))
        except Exception as error:
            return error
        except BaseException as error:  # whatever a library raises, the thread goes on
            return RuntimeError(f"{type(error).__name__}: {error}")

    def probe(self, model: Model) -> Exception | None:
        """What is wrong with this device, if anything: runs an item that it has run in its warm-up."""
        # A timer of its own, since nobody else watches it.
        timer = threading.Timer(self._hang_seconds, stopping.stop, (threading.get_ident(),))
        timer.daemon = True
        timer.start()
        try:
            outcome = self.run(model, [model.sample(PROBE_UNITS)], model.names)
        finally:
            timer.cancel()
        return outcome if isinstance(outcome, Exception) else None

    def judge(self, model: Model) -> Literal["device", "model"] | None:
        """What is at fault when a run of this model has failed; None: neither, but its items.

        It is the model if others run well on the device.
        """
        if self.probe(model) is None:
            return None
        others = [other for other in list(self._runners) if other is not model][:MOST_PROBED]
        return "model" if any(self.probe(other) is None for other in others) else "device"

    def recover(self, models: Sequence[Model]) -> tuple[dict[Model, Exception], Exception | None]:
        """Load what was loaded elsewhere while this device was out of service, and probe all, in order.

        If it is stale, its home is restarted with just these models, whose costs are known. Returns the
        models that fail although the device runs others, or that are no longer on disk; and what is wrong
        with the device, if anything.
        """
        failed: dict[Model, Exception] = {}
        well = False
        try:
            begun = self.stale
            if begun:
                self.home.restart()
                for model in self.costs.keys() - set(models):
                    self.unload(model)
            for model in models:
                wrong = self._restore(model, begun)
                if wrong is None:
                    well = True
                elif isinstance(wrong, NotReopenedError):
                    self.unload(model)
                    failed[model] = wrong
                elif model in self.costs or not begun:  # not unloaded meanwhile
                    failed[model] = wrong
                if self.home.lost:
                    break
            gone = {model: each for model, each in failed.items() if isinstance(each, NotReopenedError)}
            ill = [error for model, error in failed.items() if model not in gone]
            if failed and (self.home.lost or (ill and not well)):
                self.home.end()  # a restart may cure it
                return (failed if well else {**gone}), next(iter((*ill, *failed.values())))
            if begun and self.too_large:
                log.warning(
                    "device %s needs %d bytes for its models alone: engine.max_resident_bytes is too small, "
                    "and ignored from now on", self.name, self.home.resident_bytes,
                )  # fmt: skip
                self._max_resident_bytes = 0
        except Exception as error:
            self.home.end()
            return {}, error
        return failed, None

    def _restore(self, model: Model, begun: bool) -> Exception | None:
        """Load a model if needed, and probe it. Returns what is wrong with it."""
        try:
            if model not in self.costs:
                self.load(model)
            elif begun:
                self._runners[model] = self._open(model)
        except GraphError as error:
            return NotReopenedError(str(error)) if begun else error
        except Exception as error:
            return error
        return self.probe(model)

    def _open(self, model: Model) -> Runner:
        begun = time.monotonic()
        runner = self.home.open(model)
        self._open_seconds[model] = time.monotonic() - begun
        return runner
