"""Gives memory back to the system."""

import ctypes
import gc

# glibc gives threads heaps of their own, up to eight per core, and one does not use what another has freed.
# Few of our threads allocate at the same time, since Python runs one at a time.
ARENAS = 2
# The garbage collector's thresholds: how many new objects until it scans them, how many such scans until it
# scans older ones, and how many of those until it scans everything. By default, a few thousand texts make it
# scan everything, which stops every call for tens of milliseconds while many requests are open.
THRESHOLDS = (2_000, 5, 200)
_M_ARENA_MAX = -8  # of malloc.h


def share_heaps() -> None:
    """Let threads share heaps, so that versions that come and go leave less behind. To be called first."""
    choose = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if choose is not None:
        choose(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Free unreachable objects, and the pages that became empty.

    To be called after something large was dropped: otherwise, objects in cycles are freed at some later time,
    and glibc keeps pages of small blocks for good.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def settle() -> None:
    """Leave out of later garbage collections what is loaded by now, and make those rarer.

    Otherwise each full one would stop every call for some 30 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
