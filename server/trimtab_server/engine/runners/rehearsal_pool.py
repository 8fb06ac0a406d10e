"""A pool of processes in which foreign files are rehearsed: see rehearsal.py.

Each process has one piece at a time, and is killed if that makes no progress. Processes are kept for the next
piece, since a start has many, and end after a while without one.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from trimtab_server.engine.batch import Model
from trimtab_server.engine.runners import frames
from trimtab_server.engine.runners.process import PROGRAM, Process, raised_by
from trimtab_server.engine.runners.rehearsal import GraphPiece, Piece, RehearsalResult
from trimtab_server.engine.runners.runner import DeviceLostError, GraphError

# How long a process without work is kept.
IDLE_SECONDS = 10.0
# How long a process may take to start: that is not the fault of what it tries.
START_SECONDS = 60.0


class Rehearsals(Protocol):
    """What rehearses pieces, for any thread."""

    def graph(self, model: Model) -> GraphPiece:
        """A graph as a piece."""

    def rehearse(self, piece: Piece, step: Callable[[], None]) -> RehearsalResult:
        """Try a piece; `step` is called with each of its steps. Blocks.

        Raises GraphError with what is wrong with it; ConfigError if the device cannot be used.
        """


class RehearsalPool(Rehearsals):
    """Rehearses pieces, for any thread, on a kind of device and on `cores`. No step may take longer than
    `seconds`."""

    def __init__(
        self, kind: str, index: int, seconds: float, cores: Sequence[int], program: Sequence[str] = PROGRAM
    ) -> None:
        self._kind, self._index = kind, index
        self._seconds = seconds
        self._program = program
        self._cores = cores
        self._starting = threading.Lock()
        self._lock = threading.Lock()  # guards the fields below
        self._idle: list[Process] = []
        self._busy: set[Process] = set()
        self._timer: threading.Timer | None = None
        self._stopped = False

    def start(self) -> None:
        """Start a process ahead of the first piece."""
        self._give_back(self._take())

    def graph(self, model: Model) -> GraphPiece:
        return GraphPiece(model, self._kind, self._index)

    def rehearse(self, piece: Piece, step: Callable[[], None]) -> RehearsalResult:
        process = self._take()
        late = False
        try:
            with self._starting:  # many interpreters that start at a time would be slow
                process.wait_ready(START_SECONDS)
            step()
            with process.channel() as sock:
                sock.settimeout(self._seconds)
                try:
                    data = frames.encode(piece)
                    sock.sendall(frames.REQUEST.pack(frames.TRY, 0, len(data)) + data)
                    what, size = frames.reply(sock)
                    while what == frames.STEP:
                        step()
                        what, size = frames.reply(sock)
                    reply = frames.receive(sock, size)
                except TimeoutError:
                    late = True
                    raise
                sock.settimeout(None)
        except DeviceLostError:
            if late:
                limit = f"{self._seconds:g} s (engine.load_seconds)"
                raise GraphError(f"made no progress for {limit}, and was given up") from None
            raise GraphError(f"ended the process that tried it, which {process.how}") from None
        finally:
            self._give_back(process)
        if what == frames.RAISED:
            raise raised_by(msgspec.json.decode(reply, type=frames.RaisedError))
        return msgspec.json.decode(reply, type=RehearsalResult)

    def stop(self) -> None:
        """Kill all processes."""
        with self._lock:
            self._stopped = True
            if self._timer is not None:
                self._timer.cancel()
            processes = [*self._idle, *self._busy]
            self._idle.clear()
        for process in processes:
            process.close()

    def _take(self) -> Process:
        with self._lock:
            if self._stopped:
                raise GraphError("the server is stopping")
            if self._timer is not None:
                self._timer.cancel()
            process = self._idle.pop() if self._idle else None
            if process is None or process.lost:
                process = Process(self._program, "rehearsal", self._cores, lambda: None)
            self._busy.add(process)
            return process

    def _give_back(self, process: Process) -> None:
        with self._lock:
            self._busy.discard(process)
            if self._stopped or process.lost:
                return
            self._idle.append(process)
            self._timer = threading.Timer(IDLE_SECONDS, self._end_idle)
            self._timer.daemon = True
            self._timer.start()

    def _end_idle(self) -> None:
        with self._lock:
            processes, self._idle = self._idle, []
        for process in processes:
            process.close()
