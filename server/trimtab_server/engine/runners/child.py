"""The program of a device's own process: it opens graphs and runs them for the server that started it.

    python -m trimtab_server.engine.runners.child NAME CONTROL LIFELINE CORES

It is started by process.py, and by nobody else. Sockets come over the one whose descriptor is CONTROL; each
is served by a thread of its own. When the server is gone, however it ended, the kernel ends this process at
once: LIFELINE is a pipe that nobody writes to, and its end raises SIGKILL (fcntl(2), F_SETSIG).
"""

import faulthandler
import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trimtab_server.engine.batch import Model
from trimtab_server.engine.runners import frames
from trimtab_server.engine.runners.maps import Map, MapSession
from trimtab_server.engine.runners.session import OrtSession, Session, checked

Open = Callable[[Model, str, int], Session]


class Sessions:
    """What is open here, by the numbers that the server gave."""

    def __init__(self, open_session: Open) -> None:
        self._open = open_session
        self._sessions: dict[int, tuple[Session, int]] = {}  # and the length of a vector
        self._maps: dict[int, MapSession] = {}

    def serve(self, sock: socket.socket) -> None:
        """Do what is asked over a socket, until it is closed."""
        with sock:
            try:
                while True:
                    what, number, size = frames.REQUEST.unpack(frames.receive(sock, frames.REQUEST.size))
                    if what == frames.RUN:
                        self._run(sock, number, size)
                    elif what == frames.OPEN:
                        self._load(sock, number, frames.decode(frames.receive(sock, size), frames.Opening))
                    elif what == frames.TRY:
                        _rehearse(sock, frames.receive(sock, size))
                    elif what == frames.OPEN_MAP:
                        self._load_map(sock, number, frames.decode(frames.receive(sock, size), Map))
                    elif what == frames.MAP:
                        self._run_map(sock, number, size)
                    elif what == frames.READY:
                        sock.sendall(frames.REPLY.pack(frames.OK, 0, 0))
                    elif what == frames.CLOSE_MAP:
                        self._maps.pop(number, None)
                    else:
                        self._sessions.pop(number, None)
            except (EOFError, OSError):
                pass  # the server has closed it, or is gone

    def _load(self, sock: socket.socket, number: int, asked: frames.Opening) -> None:
        try:
            session = self._open(asked.model, asked.kind, asked.index)
        except BaseException as error:
            _tell(sock, error)
            return
        self._sessions[number] = session, asked.model.dimensions
        sock.sendall(frames.REPLY.pack(frames.OK, 0, 0))

    def _run(self, sock: socket.socket, number: int, texts: int) -> None:
        ids = frames.receive_ids(sock, texts)
        try:
            session, dimensions = self._sessions[number]
            vectors = np.ascontiguousarray(checked(session.run(ids), (texts, dimensions)))
        except BaseException as error:  # whatever a library raises, this is its answer
            _tell(sock, error)
            return
        _send(sock, vectors)

    def _load_map(self, sock: socket.socket, number: int, asked: Map) -> None:
        try:
            opened = self._maps[number] = MapSession(asked)
        except BaseException as error:
            _tell(sock, error)
            return
        _send(sock, np.array([[opened.width]], np.float32))

    def _run_map(self, sock: socket.socket, number: int, texts: int) -> None:
        opened = self._maps[number]
        rows = frames.array(sock, (texts, opened.width), np.float32)
        groups = frames.array(sock, (texts,), np.int64)
        try:
            adapted = np.ascontiguousarray(opened.run(rows, groups))
        except BaseException as error:
            _tell(sock, error)
            return
        _send(sock, adapted)


def _send(sock: socket.socket, vectors: NDArray[np.float32]) -> None:
    sock.sendall(frames.REPLY.pack(frames.OK, *vectors.shape))
    sock.sendall(vectors.data.cast("B"))


def _rehearse(sock: socket.socket, data: bytearray) -> None:
    from trimtab_server.engine.runners import (
        rehearsal,  # only where it is asked for: it brings the tokenizers along
    )

    try:
        piece: rehearsal.Piece = frames.decode(data, rehearsal.Piece)  # type: ignore[arg-type]
        found = rehearsal.rehearse(piece, lambda: sock.sendall(frames.REPLY.pack(frames.STEP, 0, 0)))
    except BaseException as error:
        _tell(sock, error)
        return
    reply = frames.encode(found)
    sock.sendall(frames.REPLY.pack(frames.OK, len(reply), 0) + reply)


def _tell(sock: socket.socket, error: BaseException) -> None:
    data = frames.encode(frames.Raised(type(error).__name__, str(error)))
    sock.sendall(frames.REPLY.pack(frames.RAISED, len(data), 0) + data)


def main(open_session: Open = OrtSession) -> None:
    """Serve until the server is gone; tests hand in sessions that fail on purpose."""
    _, control, lifeline, usable = sys.argv[1:]
    faulthandler.enable()  # a crash leaves the stack in the server's log
    _die_with(int(lifeline))
    # Signals to the process group or to the container are for the server, which drains first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.sched_setaffinity(0, set(map(int, usable.split(","))))
    sessions = Sessions(open_session)
    with socket.socket(fileno=int(control)) as calls:
        while True:
            data, descriptors, *_ = socket.recv_fds(calls, 1, 1)
            if not data:
                os._exit(0)  # without waiting for runs: nobody wants what they bring
            for descriptor in descriptors:
                sock = socket.socket(fileno=descriptor)
                threading.Thread(target=sessions.serve, args=(sock,), daemon=True).start()


def _die_with(lifeline: int) -> None:
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


if __name__ == "__main__":
    main()
