"""What every call of a port passes on its way in and out: who calls, is there room, does the server drain."""

import asyncio
import contextlib
from typing import NoReturn

from trimtab.errors import TrimtabError, Unavailable
from trimtab_server.callers.access import Caller
from trimtab_server.fronts.grpc.guard import Guard
from trimtab_server.fronts.grpc.intake import Intake, OpenCall
from trimtab_server.fronts.grpc.observed import Observed
from trimtab_server.fronts.grpc.pace import NOTHING, Pace
from trimtab_server.fronts.grpc.senders import Tenants
from trimtab_server.fronts.grpc.statuses import Context, abort
from trimtab_server.fronts.grpc.unread import Unread
from trimtab_server.observing.load import Load
from trimtab_server.turns import Turns


class Entrance:
    """Knows which calls are in flight, and turns away new ones while the server drains: gRPC's own stop
    cancels calls that have arrived and are not taken up yet, and a client may not retry those.

    A call that the guard does not let in is answered before its message is read. Where the load is known,
    each call of one message is answered with a report of it; streams stay where they are. `observed` sees
    every call, refused or not, but those of the infrastructure.
    """

    def __init__(
        self,
        intake: Intake,
        unread: Unread,
        tenants: Tenants,
        guard: Guard,
        load: Load | None = None,
        turns: Turns | None = None,
        pace: Pace | None = None,
        observed: Observed | None = None,
    ) -> None:
        self.intake = intake
        self.unread = unread
        self.tenants = tenants
        self.guard = guard
        self.load = load
        self.observed = observed
        self.pace = pace or Pace()
        self.turns = turns or Turns()
        self._draining = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Take no new calls, and wait until those in flight are answered, or for so many seconds."""
        self._draining = True
        self.pace.free()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    def admit(self, method: str, context: Context) -> Caller:
        """Whom a call is from; Unauthenticated or PermissionDenied where it may not come in."""
        metadata = (context.invocation_metadata() or ()) if self.guard.reads_metadata else ()
        return self.guard.admit(method, metadata)

    async def refuse(self, context: Context, error: TrimtabError) -> NoReturn:
        """Answer a call with the error before a message of it is read."""
        await self.pace.wait(context.peer(), NOTHING)
        await abort(context, error)

    def open(self, caller: Caller, context: Context, request_id: str, *, counted: bool) -> OpenCall:
        """A call is taken up: Unavailable while the server drains, ResourceExhausted where it has no room."""
        if counted and self._draining:
            raise Unavailable("the server is draining: try another one")
        sender = self.tenants.of(caller, context)
        call = self.intake.open(caller, sender, context, asyncio.current_task(), request_id)
        if counted:
            self._calls += 1
            self._idle.clear()
        return call

    def close(self, call: OpenCall, *, counted: bool) -> None:
        """The call is over."""
        self.intake.close(call)
        if counted:
            self._calls -= 1
            if not self._calls:
                self._idle.set()
