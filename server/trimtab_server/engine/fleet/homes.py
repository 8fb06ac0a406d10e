"""Where the graphs of a place are open: in the server's process, or in one of their own."""

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.errors import ConfigError
from trimtab_server.engine.batch import Model
from trimtab_server.engine.fleet import cores
from trimtab_server.engine.fleet.places import Place
from trimtab_server.engine.runners import opening
from trimtab_server.engine.runners.process import PROGRAM, Process, RemoteRunner
from trimtab_server.engine.runners.runner import DeviceLostError, Runner, UnusableError

Open = Callable[[Model, Place], Runner]


class Home(Protocol):
    """Where the graphs of a place are open: in the server's process, or in one of their own."""

    @property
    def restarts(self) -> bool:
        """Whether it can be restarted."""

    @property
    def lost(self) -> bool:
        """Whether its process is gone, until `restart`: its runners raise DeviceLostError."""

    @property
    def resident_bytes(self) -> int:
        """Its memory; 0 if that is not known."""

    def start(self, ended: Callable[[], None]) -> None:
        """Start; `ended` is called, on some thread, when it has ended by itself."""

    def restart(self) -> None:
        """End what is left of it, and start anew. OSError if that fails."""

    def open(self, model: Model) -> Runner:
        """Open a graph."""

    def close(self, runner: Runner) -> None:
        """Close a graph that is no longer used."""

    def end(self) -> None:
        """Kill it, if it `restarts`. Does not wait."""

    def stop(self) -> None:
        """End it for good."""


class InThreads:
    """The graphs of a place in the server's own process, where they cannot be killed."""

    restarts = False
    lost = False
    resident_bytes = 0

    def __init__(self, open_graph: Open, place: Place) -> None:
        self._open = open_graph
        self._place = place

    def start(self, ended: Callable[[], None]) -> None:
        pass

    def restart(self) -> None:
        pass

    def open(self, model: Model) -> Runner:
        return self._open(model, self._place)

    def close(self, runner: Runner) -> None:
        pass

    def end(self) -> None:
        pass

    def stop(self) -> None:
        pass


class InProcess:
    """The graphs of a place in a process of their own, one process after another."""

    restarts = True

    def __init__(self, place: Place, program: Sequence[str] = PROGRAM) -> None:
        self._place = place
        self._program = program
        # As they are now: the thread that starts another process later may be bound to a core.
        self._usable = place.cores or tuple(cores.available())
        self._numbers = itertools.count(1)
        self._ended: Callable[[], None] = lambda: None
        self._process: Process | None = None
        self._lock = threading.Lock()  # guards starts and ends
        self._stopped = False

    @property
    def lost(self) -> bool:
        return self._process is None or self._process.lost

    @property
    def resident_bytes(self) -> int:
        return 0 if self._process is None else self._process.resident_bytes

    def start(self, ended: Callable[[], None]) -> None:
        self._ended = ended
        self.restart()

    def restart(self) -> None:
        with self._lock:
            if self._stopped:
                raise DeviceLostError(f"device {self._place} is stopped")
            if self._process is not None:
                self._process.close()
            self._process = Process(self._program, f"device {self._place}", self._usable, self._ended)

    def open(self, model: Model) -> Runner:
        place = self._place
        if self._process is None:
            raise DeviceLostError(f"device {place} has no process")
        return RemoteRunner(self._process, next(self._numbers), model, place.kind, place.index, place.workers)

    def close(self, runner: Runner) -> None:
        if isinstance(runner, RemoteRunner):
            runner.close()

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.close()


def open_at(model: Model, place: Place) -> Runner:
    """A graph at a place, in the runtime that its manifest names. ConfigError if that cannot be used."""
    try:
        with cores.bound(place.cores):  # threads that the runtime starts stay on the place's cores
            return opening.open_graph(model, place.kind, place.index, place.workers)
    except UnusableError as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Opening:
    """How graphs are opened: by `open` on threads, by `program` in processes of their own.

    `foreign`: they come from files that may do anything. They are rehearsed before they are opened, and the
    costs of their runs are kept for the next start.
    """

    open: Open = open_at
    program: Sequence[str] = PROGRAM
    foreign: bool = True

    def home(self, place: Place, *, isolated: bool) -> Home:
        """A home for the sessions of a place, in a process of its own if it is `isolated`."""
        return InProcess(place, self.program) if isolated else InThreads(self.open, place)
