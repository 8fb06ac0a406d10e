"""Where adapters' graphs run: on threads of the server, or in a process of their own (`isolation`)."""

import contextlib
import itertools
import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.values.column import Column
from trimtab_server import limited
from trimtab_server.engine.runners import frames
from trimtab_server.engine.runners.adapter_graph import AdapterGraph, AdapterOpened, AdapterSession
from trimtab_server.engine.runners.process import PROGRAM, Process, answered
from trimtab_server.engine.runners.runner import DeviceLostError

Rows = NDArray[np.float32]
# How long a process may take to start and to open a graph: that is not the adapter's fault.
START_SECONDS = 60.0


class OpenAdapter(Protocol):
    """An adapter's graph that can be run, from one thread at a time."""

    @property
    def width(self) -> int:
        """How many components the rows that it reads have."""

    def run(self, rows: Rows, groups: NDArray[np.int64]) -> Rows:
        """Rows, float32 (n, width), in the target space, float32 (n, target); `groups` is int64 (n,)."""


class AdapterHost:
    """Graphs on threads of the server: there, a Loop that hangs can be stopped, but nothing else that
    hangs."""

    def open(self, graph: AdapterGraph) -> OpenAdapter:
        """Open a graph that was rehearsed. Raises GraphError."""
        return AdapterSession(graph)

    def close(self, adapter: OpenAdapter) -> None:
        """Close a graph that is no longer used."""

    def end(self, adapter: OpenAdapter) -> None:
        """Stop a graph that hangs."""

    def stop(self) -> None:
        """Stop: nothing will run any longer."""


class IsolatedAdapterHost(AdapterHost):
    """Graphs in a process on `cores`, which is replaced when it ends."""

    def __init__(self, cores: Sequence[int], program: Sequence[str] = PROGRAM) -> None:
        self._program = program
        self._cores = cores
        self._lock = threading.Lock()  # guards the fields below
        self._process: Process | None = None
        self._stopped = False
        self.alone = threading.Lock()  # graphs that ran when a process died try again one at a time

    def open(self, graph: AdapterGraph) -> OpenAdapter:
        opened = RemoteAdapter(self, graph)
        try:
            opened.open()
        except DeviceLostError:  # because of another graph
            with self.alone:
                opened.open()
        return opened

    def close(self, adapter: OpenAdapter) -> None:
        if isinstance(adapter, RemoteAdapter):
            adapter.close()

    def end(self, adapter: OpenAdapter) -> None:
        if isinstance(adapter, RemoteAdapter):
            adapter.ended = True
            with self._lock:
                if self._process is not None:
                    self._process.kill()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.close()

    def process(self) -> Process:
        """The running process, or a new one."""
        with self._lock:
            if self._stopped:
                raise DeviceLostError("the server is stopping")
            if self._process is None or self._process.lost:
                self._process = Process(self._program, "adapters", self._cores, lambda: None)
            return self._process


class RemoteAdapter:
    """A graph in a process, reopened in the next one."""

    _numbers = itertools.count(1)

    def __init__(self, home: IsolatedAdapterHost, graph: AdapterGraph) -> None:
        self.ended = False  # it hung, and is no longer run
        self.width = 0
        self._home = home
        self._graph = graph
        self._number = next(self._numbers)
        self._process: Process | None = None  # in which it is open

    def open(self) -> Process:
        """Open it in the current process, if it is not, and return that. Raises what is wrong with it, or
        DeviceLostError."""
        process = self._home.process()
        if self._process is not process:
            limited.step(START_SECONDS)
            data = frames.encode(self._graph)
            with process.channel() as sock:
                sock.sendall(frames.REQUEST.pack(frames.OPEN_ADAPTER, self._number, len(data)) + data)
                self.width = frames.decode(frames.receive(sock, answered(sock)), AdapterOpened).width
            self._process = process
        return process

    def close(self) -> None:
        """Let its process forget it."""
        process = self._process
        if process is not None and not process.lost:
            with contextlib.suppress(DeviceLostError), process.channel() as sock:
                sock.sendall(frames.REQUEST.pack(frames.CLOSE_ADAPTER, self._number, 0))

    def run(self, rows: Rows, groups: NDArray[np.int64]) -> Rows:
        """As an AdapterSession does. DeviceLostError if it kills its process."""
        try:
            return self._run(rows, groups)
        except DeviceLostError:
            if self.ended:
                raise
        limited.step(START_SECONDS)  # until those before it have had their turn
        with self._home.alone:
            return self._run(rows, groups)

    def _run(self, rows: Rows, groups: NDArray[np.int64]) -> Rows:
        process = self.open()
        limited.step()
        data, numbers = frames.described({"vectors": Column(rows), "groups": Column(groups)})
        expected = (len(rows), self._graph.target)
        with process.channel() as sock:
            frames.send(sock, frames.REQUEST.pack(frames.ADAPT, self._number, len(data)), [data, *numbers])
            most = rows.itemsize * expected[0] * expected[1]
            adapted: Rows = frames.receive_columns(sock, answered(sock), most)[0]["adapted"].values
            if adapted.shape != expected or adapted.dtype != np.float32:
                raise EOFError("an unexpected answer")
            return adapted
