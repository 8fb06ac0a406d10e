"""Whether a thread that wakes interrupts the one that runs on its core."""

import contextlib
import os


def politely() -> None:
    """From now on, this thread and those that it starts wait for their turn when they wake (SCHED_BATCH).

    For processes whose threads do little themselves. gRPC wakes a thread of its own for each event of a call,
    which would interrupt the event loop every time: that costs two switches, and the loop handles events one
    by one instead of together. Not for processes that also compute: a run would hold up the loop until its
    time slice ends. Where the kernel refuses or has no such policy, nothing changes.
    """
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
