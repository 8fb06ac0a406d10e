"""gRPC after a fork: the child does not inherit its threads, and its locks may be held.

If no call was in flight at the fork, the child can use gRPC over new connections; the old ones are the
parent's, and two processes writing to one would break it for both. If a call was in flight, the child may
hang, abort, or write into its parent's connection, so it is refused.
"""

import os
import threading
from types import TracebackType

from trimtab.errors import FailedPrecondition


class _ProcessState:
    """What this process knows about itself."""

    def __init__(self, generation: int, *, broken: bool) -> None:
        self.generation = generation
        self.broken = broken
        self.calls = 0
        self.lock = threading.Lock()


_state = _ProcessState(0, broken=False)


def generation() -> int:
    """A number that differs between a child and its parent."""
    return _state.generation


def under_way() -> int:
    """How many calls and streams of this process are in flight."""
    return _state.calls


class Calling:
    """Counts a call or a stream in flight; use `with`, or begin and end.

    Raises FailedPrecondition if this process was forked while one was in flight.
    """

    def begin(self) -> None:
        """Count it as in flight."""
        state = _state
        if state.broken:
            raise FailedPrecondition(
                "this process was forked while gRPC calls were in flight, which gRPC does not survive: "
                "start processes by 'spawn' or 'forkserver' (multiprocessing.set_start_method), or fork "
                "while no call and no stream is open"
            )
        with state.lock:
            state.calls += 1

    def end(self) -> None:
        """Count it as ended."""
        state = _state
        with state.lock:
            state.calls = max(state.calls - 1, 0)

    def __enter__(self) -> None:
        self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def _forked() -> None:
    global _state  # noqa: PLW0603 (the lock may be held by a thread that is not here)
    _state = _ProcessState(_state.generation + 1, broken=_state.broken or _state.calls > 0)


os.register_at_fork(after_in_child=_forked)
