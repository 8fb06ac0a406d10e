"""Gives memory back to the system."""

import ctypes
import gc

# glibc gives threads heaps of their own, up to eight a core, and what one has freed another does not use. Few
# of ours allocate at the same time, as Python runs one of them at a time.
ARENAS = 2
_M_ARENA_MAX = -8  # of malloc.h


def share_heaps() -> None:
    """Let threads share heaps, so that versions that come and go leave less behind. To be called first."""
    choose = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if choose is not None:
        choose(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Free what nobody reaches, and the pages that became empty by that.

    To be called after something large went: objects in cycles are otherwise freed at some later time, and
    glibc keeps pages of small blocks for good.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
