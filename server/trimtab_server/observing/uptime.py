"""How long this process has been running."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def seconds() -> float:
    """Seconds since the process started; if the system does not say, since this module was imported."""
    try:
        # After the name, which may contain anything, the 20th field: ticks from boot to start (proc(5)).
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.monotonic() - _IMPORTED
