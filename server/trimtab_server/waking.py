"""What it costs to wake a thread."""

import contextlib
import os
import threading

_polite = False


def politely() -> None:
    """From now on, this thread and those that it starts wait for their turn when they wake (SCHED_BATCH).

    For processes whose threads do little themselves. gRPC wakes a thread of its own for each event of a call,
    which would interrupt the event loop every time: that costs two switches, and the loop handles events one
    by one instead of together. Not for processes that also compute: a run would hold up the loop until its
    time slice ends. Where the kernel refuses or has no such policy, nothing changes.
    """
    global _polite  # noqa: PLW0603  # the process's, as the policy is
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        _polite = True


def give_way() -> None:
    """Let threads that have woken run first, if they wait for their turn."""
    if _polite:
        os.sched_yield()


class RareCondition(threading.Condition):
    """A condition that hardly anybody waits for: notifying nobody costs nothing."""

    _waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        self._waiting += 1
        try:
            return super().wait(timeout)
        finally:
            self._waiting -= 1

    def notify_all(self) -> None:
        if self._waiting:
            super().notify_all()
