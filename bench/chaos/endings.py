"""How a store run ends: in a child process that is killed, or whose disk is full or fails.

A kill comes after a number of function calls, of Python's functions and of what they call: so before, between
and after system calls. The caller draws the ending from a seed.
"""

import errno
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from trimtab.errors import TrimtabError

SECONDS = 300.0  # a child may take this long
DONE, REFUSED, CRASHED = 0, 3, 4


@dataclass(frozen=True, slots=True)
class Ending:
    """What happens to a child; at most one field is set.

    kill: at this call. full: none of its files may grow beyond this. failing: this call of fsync fails.
    """

    kill: int | None = None
    full: int | None = None
    failing: int | None = None


@dataclass(slots=True)
class Child:
    """A process that does `work`; it writes how it ended to the file `said`."""

    pid: int
    said: Path

    def wait(self) -> int:
        """Its exit status; -9 if it was killed. A child that hangs is killed, and counts as crashed."""
        until = time.monotonic() + SECONDS
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.said.write_text(f"hung for {SECONDS} s")
                return CRASHED
            time.sleep(0.002)


def start(work: Callable[[], object], said: Path, ending: Ending = Ending()) -> Child:
    """Start `work` in a child."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, said)
    status = CRASHED
    try:
        _befall(ending)
        work()
        status = DONE
    except TrimtabError as error:
        _unlimited()
        said.write_text(f"{type(error).__name__}: {error}")
        status = REFUSED
    except BaseException:
        _unlimited()
        said.write_text(traceback.format_exc())
    finally:
        sys.setprofile(None)
        os._exit(status)


def calls(work: Callable[[], object], said: Path) -> int:
    """How many calls `work` makes, counted in a child."""

    def counted() -> None:
        count = 0

        def note(*event: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(note)
        work()
        sys.setprofile(None)
        said.write_text(str(count))

    if start(counted, said).wait() != DONE:
        raise RuntimeError(f"it fails undisturbed: {said.read_text()}")
    return int(said.read_text())


def _befall(ending: Ending) -> None:
    if ending.full is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (ending.full, resource.RLIM_INFINITY))
    if ending.failing is not None:
        fsync, left = os.fsync, ending.failing

        def failing(descriptor: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            fsync(descriptor)

        os.fsync = cast("Any", failing)
    if ending.kill is not None:
        remaining = ending.kill

        def kill(*event: object) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(kill)


def _unlimited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
