"""Gives memory back to the system."""

import ctypes
import gc


def give_back() -> None:
    """Free what nobody reaches, and the pages that became empty by that.

    To be called after something large went: objects in cycles are otherwise freed at some later time, and
    glibc keeps pages of small blocks for good.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
