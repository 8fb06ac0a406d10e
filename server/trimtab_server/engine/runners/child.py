"""The program of a device's own process: it opens graphs and runs them for the server that started it.

    python -m trimtab_server.engine.runners.child NAME CONTROL LIFELINE CORES

It is started by process.py, and by nobody else. Sockets come over the one whose descriptor is CONTROL; each
is served by a thread of its own. When the server is gone, the kernel ends this process: see lifeline.py.
"""

import faulthandler
import os
import socket
import sys
import threading
from collections.abc import Callable

from trimtab.values.column import Column, Columns
from trimtab_server.engine.batch import Model
from trimtab_server.engine.runners import frames
from trimtab_server.engine.runners.adapter_graph import AdapterGraph, AdapterOpened, AdapterSession
from trimtab_server.engine.runners.opening import open_graph
from trimtab_server.engine.runners.runner import Runner, checked
from trimtab_server.lifeline import hold, ignore_signals

Open = Callable[[Model, str, int, int], Runner]


class Graphs:
    """The graphs that are open here, by the server's numbers."""

    def __init__(self, open_one: Open) -> None:
        self._open = open_one
        self._runners: dict[int, tuple[Runner, Model]] = {}
        self._adapters: dict[int, AdapterSession] = {}

    def serve(self, sock: socket.socket) -> None:
        """Serve the requests of a socket until it is closed."""
        with sock:
            try:
                while True:
                    what, number, size = frames.REQUEST.unpack(frames.receive(sock, frames.REQUEST.size))
                    if what == frames.RUN:
                        self._run(sock, number, size)
                    elif what == frames.OPEN:
                        self._load(
                            sock, number, frames.decode(frames.receive(sock, size), frames.OpenRequest)
                        )
                    elif what == frames.TRY:
                        _rehearse(sock, frames.receive(sock, size))
                    elif what == frames.OPEN_ADAPTER:
                        self._load_adapter(
                            sock, number, frames.decode(frames.receive(sock, size), AdapterGraph)
                        )
                    elif what == frames.ADAPT:
                        self._run_adapter(sock, number, size)
                    elif what == frames.READY:
                        sock.sendall(frames.REPLY.pack(frames.OK, 0))
                    elif what == frames.CLOSE_ADAPTER:
                        self._adapters.pop(number, None)
                    else:
                        self._runners.pop(number, None)
            except (EOFError, OSError):
                pass  # the server has closed it, or is gone

    def _load(self, sock: socket.socket, number: int, asked: frames.OpenRequest) -> None:
        try:
            runner = self._open(asked.model, asked.kind, asked.index, asked.workers)
        except BaseException as error:
            _tell(sock, error)
            return
        self._runners[number] = runner, asked.model
        sock.sendall(frames.REPLY.pack(frames.OK, 0))

    def _run(self, sock: socket.socket, number: int, size: int) -> None:
        batch, wanted = frames.receive_columns(sock, size)
        try:
            runner, model = self._runners[number]
            items = len(next(iter(batch.values())))
            result = checked(runner.run(batch, wanted), model, wanted, items)
        except BaseException as error:  # whatever a library raises, this is its answer
            _tell(sock, error)
            return
        _send(sock, result)

    def _load_adapter(self, sock: socket.socket, number: int, asked: AdapterGraph) -> None:
        try:
            opened = self._adapters[number] = AdapterSession(asked)
        except BaseException as error:
            _tell(sock, error)
            return
        data = frames.encode(AdapterOpened(opened.width))
        sock.sendall(frames.REPLY.pack(frames.OK, len(data)) + data)

    def _run_adapter(self, sock: socket.socket, number: int, size: int) -> None:
        rows, _ = frames.receive_columns(sock, size)
        try:
            adapted = self._adapters[number].run(rows["vectors"].values, rows["groups"].values)
        except BaseException as error:
            _tell(sock, error)
            return
        _send(sock, {"adapted": Column(adapted)})


def _send(sock: socket.socket, columns: Columns) -> None:
    data, numbers = frames.described(columns)
    frames.send(sock, frames.REPLY.pack(frames.OK, len(data)), [data, *numbers])


def _rehearse(sock: socket.socket, data: bytearray) -> None:
    from trimtab_server.engine.runners import (
        rehearsal,  # only if it is needed
    )

    try:
        piece: rehearsal.Piece = frames.decode(data, rehearsal.Piece)  # type: ignore[arg-type]
        found = rehearsal.rehearse(piece, lambda: sock.sendall(frames.REPLY.pack(frames.STEP, 0)))
    except BaseException as error:
        _tell(sock, error)
        return
    reply = frames.encode(found)
    sock.sendall(frames.REPLY.pack(frames.OK, len(reply)) + reply)


def _tell(sock: socket.socket, error: BaseException) -> None:
    data = frames.encode(frames.RaisedError(type(error).__name__, str(error)))
    sock.sendall(frames.REPLY.pack(frames.RAISED, len(data)) + data)


def main(open_one: Open = open_graph) -> None:
    """Serve until the server is gone; tests hand in runners that fail on purpose."""
    _, control, lifeline, usable = sys.argv[1:]
    faulthandler.enable()  # a crash leaves the stack in the server's log
    hold(int(lifeline))
    ignore_signals()
    os.sched_setaffinity(0, set(map(int, usable.split(","))))
    graphs = Graphs(open_one)
    with socket.socket(fileno=int(control)) as calls:
        while True:
            data, descriptors, *_ = socket.recv_fds(calls, 1, 1)
            if not data:
                os._exit(0)  # without waiting for runs: nobody wants their results
            for descriptor in descriptors:
                sock = socket.socket(fileno=descriptor)
                threading.Thread(target=graphs.serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
