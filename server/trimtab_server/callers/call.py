"""One request: from whom, by when, and how urgent."""

import msgspec

from trimtab.kinds import Priority
from trimtab_server.callers.access import Caller


class Call(msgspec.Struct, frozen=True):
    """A request that a front end has accepted. Times are on time.monotonic's clock.

    A front end makes it from what its protocol says, and passes it on as an argument. It has no defaults, so
    whoever makes one must say who calls.
    """

    caller: Caller
    tenant: str  # "" if it names none
    flow: str  # what takes turns: its tenant, or its connection if it has none
    protocol: str
    arrived: float
    deadline: float | None
    priority: Priority
    request_id: str  # "" if neither logs nor traces need one

    def asking(self, priority: Priority, seconds: float | None = None) -> "Call":
        """The call with what its message says: its priority, and the seconds that it may take at most."""
        if priority == self.priority and seconds is None:
            return self
        deadline = self.deadline
        if seconds is not None:
            own = self.arrived + seconds
            deadline = own if deadline is None else min(deadline, own)
        return msgspec.structs.replace(self, priority=priority, deadline=deadline)
