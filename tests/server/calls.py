"""The call that a test's request comes with."""

import time

from trimtab.kinds import Priority
from trimtab_server.callers.access import ANYONE, Caller
from trimtab_server.callers.call import Call


def call(
    caller: Caller = ANYONE,
    tenant: str = "",
    *,
    seconds: float | None = None,
    priority: Priority = "interactive",
) -> Call:
    """A request that arrives now, of a connection of the test's own, and may take so many seconds."""
    now = time.monotonic()
    deadline = None if seconds is None else now + seconds
    return Call(caller, tenant, tenant or "test:1", "test", now, deadline, priority, "")
