"""Lets one thread stop what another does.

ONNX Runtime checks a flag between two nodes, and between two iterations of a Loop. What hangs inside a node,
such as in a driver, cannot be stopped.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_running: dict[int, Callable[[], None]] = {}  # how to stop it, by thread


@contextmanager
def stoppable(how: Callable[[], None]) -> Iterator[None]:
    """What this thread does within the block can be stopped by calling `how`."""
    thread = threading.get_ident()
    _running[thread] = how
    try:
        yield
    finally:
        del _running[thread]


def stop(thread: int | None) -> None:
    """Stop what this thread does, if that is possible."""
    how = _running.get(thread or 0)
    if how is not None:
        how()
