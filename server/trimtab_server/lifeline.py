"""How a process that the server has started ends with it."""

import fcntl
import os
import select
import signal


def hold(lifeline: int) -> None:
    """Let the kernel kill this process as soon as the server is gone, however it ended.

    `lifeline` is the reading end of a pipe that nobody writes to; its end raises SIGKILL (fcntl(2),
    F_SETSIG).
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    ended = select.poll()
    ended.register(lifeline, 0)
    if ended.poll(0):  # the server was gone before
        os._exit(1)


def ignore_signals() -> None:
    """Signals to the process group or to the container are for the server, which drains first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
