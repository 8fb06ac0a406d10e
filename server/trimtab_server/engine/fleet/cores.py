"""How much of the machine's CPU this process may use: its affinity, and its container's quota.

Sources: sched_getaffinity(2); the kernel's documents of cgroup v2 (cpu.max) and v1 (cpu.cfs_quota_us).
"""

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available() -> list[int]:
    """The cores that the process may run on, in order."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def bound(to: Collection[int] | None) -> Iterator[None]:
    """Within the block, this thread and those that it starts run on these cores; None: on any."""
    before = os.sched_getaffinity(0)
    if to is not None:
        os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def usable(cgroup: Path = CGROUP) -> int:
    """How many cores' worth of time there is, at least 1.

    A container with a limit of 4 CPUs on a machine of 64 may run on all 64 cores, but is stopped for the
    rest of each period once it has used 4 cores' time: with 63 workers it would stand still most of the time.
    """
    quota = _quota(cgroup)
    cores = len(available())
    return cores if quota is None else max(1, min(cores, int(quota)))


def idle_clock(workers: int) -> Callable[[], float] | None:
    """A clock that counts the seconds in which this process leaves its cores idle, all cores added up; None
    if so many workers leave a core to the process's other threads."""
    cores = usable()
    if workers < cores:
        return None
    return lambda: cores * time.monotonic() - time.process_time()


def _quota(cgroup: Path) -> float | None:
    """The quota in cores; None if there is none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    # No quota is "max" in version 2, and -1 in version 1.
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None
