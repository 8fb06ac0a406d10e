"""What a thread does and another one can stop.

ONNX Runtime looks at a flag between two nodes and between two turns of a Loop. What hangs within a node, as
in a driver, cannot be stopped.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_running: dict[int, Callable[[], None]] = {}  # how to stop it, by thread


@contextmanager
def stoppable(how: Callable[[], None]) -> Iterator[None]:
    """What this thread does within the block can be stopped, by `how`."""
    thread = threading.get_ident()
    _running[thread] = how
    try:
        yield
    finally:
        del _running[thread]


def stop(thread: int | None) -> None:
    """Stop what this thread does, where that can be stopped."""
    how = _running.get(thread or 0)
    if how is not None:
        how()
