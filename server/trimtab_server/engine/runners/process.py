"""The server's side of a process that runs graphs; child.py is the other side."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from trimtab.errors import ConfigError
from trimtab.values.column import Columns
from trimtab_server.engine.batch import Model, Wanted
from trimtab_server.engine.runners import frames
from trimtab_server.engine.runners.runner import DeviceLostError, GraphError, UnusableError

log = logging.getLogger(__name__)

# A fresh interpreter, since a fork would copy locks that other threads hold; without the folder that the
# server was started in on its path, since what lies there is not ours.
PROGRAM = (sys.executable, "-P", "-m", "trimtab_server.engine.runners.child")
PAGE = os.sysconf("SC_PAGE_SIZE")
OFFSET_BYTES = 8  # of an item with several rows
MOST_JSON = 1 << 24  # of an answer: what was raised may be long


class RemoteError(Exception):
    """What a runner in another process has raised."""


class Process:
    """One process, from its start to its end, when `ended` is called on a separate thread.

    Any thread may call; each call in progress has a socket of its own, and a thread of its own in the
    process.
    """

    def __init__(
        self, program: Sequence[str], name: str, usable: Sequence[int], ended: Callable[[], None]
    ) -> None:
        self._name = name
        self._status: int | None = None
        self._ready = False
        self._ended = ended
        self._lock = threading.Lock()  # guards the fields below
        self._idle: list[socket.socket] = []
        self._lost = False
        self._wanted = True
        self._control, theirs = socket.socketpair()
        read, self._lifeline = os.pipe()
        command = [*program, self._name, str(theirs.fileno()), str(read), ",".join(map(str, usable))]
        try:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=(theirs.fileno(), read)
            )
        except OSError:
            self._control.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(read)
        self.pid = self._popen.pid
        self._reaper = threading.Thread(target=self._reap, name=f"{self._name}-process", daemon=True)
        self._reaper.start()
        log.info("%s: process %d started", self._name, self.pid)

    @property
    def lost(self) -> bool:
        """Whether it is gone or being killed: it no longer runs anything."""
        return self._lost

    @property
    def resident_bytes(self) -> int:
        """Its memory; 0 if that is not known."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            return 0

    @property
    def how(self) -> str:
        """How it has ended."""
        self._reaper.join()
        return self._how()

    def wait_ready(self, seconds: float) -> None:
        """Wait until it answers, since an interpreter takes a while to start. DeviceLostError if it does
        not."""
        if self._ready:
            return
        with self.channel() as sock:
            sock.settimeout(seconds)
            sock.sendall(frames.REQUEST.pack(frames.READY, 0, 0))
            answered(sock)
            sock.settimeout(None)
        self._ready = True

    def kill(self) -> None:
        """Kill it: its calls raise DeviceLostError. Does not wait."""
        with self._lock:
            self._lost = True
            idle, self._idle = self._idle, []
        for sock in idle:
            sock.close()
        self._popen.kill()  # does nothing if it has already ended

    def close(self) -> None:
        """Kill it because it is no longer needed, and wait for its end."""
        self._wanted = False
        self.kill()
        self._reaper.join()

    @contextlib.contextmanager
    def channel(self) -> Iterator[socket.socket]:
        """A socket for one call. If the call breaks off, the process is lost."""
        sock: socket.socket | None = None
        whole = False
        try:
            with self._lock:
                if self._lost:
                    raise EOFError
                sock = self._idle.pop() if self._idle else None
            if sock is None:
                sock, theirs = socket.socketpair()
                with theirs:
                    socket.send_fds(self._control, [b"c"], [theirs.fileno()])
            yield sock
            whole = True
        except (RemoteError, GraphError, ConfigError):  # an answer, too
            whole = True
            raise
        except (EOFError, OSError):
            self.kill()
            raise DeviceLostError(f"process {self.pid} of {self._name} is gone") from None
        finally:
            if sock is not None:
                with self._lock:
                    whole = whole and not self._lost
                    if whole:
                        self._idle.append(sock)
                if not whole:
                    sock.close()

    def _reap(self) -> None:
        self._status = self._popen.wait()
        self.kill()
        self._control.close()
        os.close(self._lifeline)
        if self._wanted:
            log.warning("%s: process %d %s", self._name, self.pid, self._how())
            self._ended()

    def _how(self) -> str:
        status = self._status or 0
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"


class RemoteRunner:
    """A graph in another process. `run` raises DeviceLostError when the process ends meanwhile."""

    def __init__(
        self, process: Process, number: int, model: Model, kind: str, index: int, workers: int = 1
    ) -> None:
        self._process = process
        self._number = number
        self._model = model
        data = frames.encode(frames.OpenRequest(model, kind, index, workers))
        with process.channel() as sock:
            sock.sendall(frames.REQUEST.pack(frames.OPEN, number, len(data)) + data)
            answered(sock)

    def run(self, batch: Columns, wanted: Wanted) -> Columns:
        """What is wanted of the items of a batch."""
        items = len(next(iter(batch.values())))
        most = self._model.most_bytes(wanted, items, items * self._model.most_units)
        most += OFFSET_BYTES * (items + 1) * len(wanted)
        data, numbers = frames.described(batch, wanted)
        with self._process.channel() as sock:
            frames.send(sock, frames.REQUEST.pack(frames.RUN, self._number, len(data)), [data, *numbers])
            return frames.receive_columns(sock, answered(sock), most)[0]

    def close(self) -> None:
        """Let the process forget it, if it is still there."""
        with contextlib.suppress(DeviceLostError), self._process.channel() as sock:
            sock.sendall(frames.REQUEST.pack(frames.CLOSE, self._number, 0))


def answered(sock: socket.socket) -> int:
    """How many bytes of JSON follow in a call's answer; raises what the call has raised."""
    what, size = frames.reply(sock)
    if size > MOST_JSON:
        raise EOFError("an unexpected answer")
    if what == frames.RAISED:
        raise raised_by(msgspec.json.decode(frames.receive(sock, size), type=frames.RaisedError))
    return size


def raised_by(raised: frames.RaisedError) -> Exception:
    """The other side's error, as one of this side."""
    if raised.kind == UnusableError.__name__:
        return ConfigError(raised.text)
    if raised.kind == GraphError.__name__:
        return GraphError(raised.text)
    return RemoteError(f"{raised.kind}: {raised.text}")
