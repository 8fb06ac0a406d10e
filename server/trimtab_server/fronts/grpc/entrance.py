"""What every call of a port passes on its way in and out: authorisation, room, draining."""

import asyncio
import contextlib
from typing import NoReturn

from trimtab.errors import TrimtabError, Unavailable
from trimtab_server.callers.access import Caller
from trimtab_server.fronts.grpc.guard import Guard
from trimtab_server.fronts.grpc.intake import Intake, OpenCall
from trimtab_server.fronts.grpc.lobby import Lobby
from trimtab_server.fronts.grpc.observed import CallObserver
from trimtab_server.fronts.grpc.pace import CANCELLED, FAILED, Pacer
from trimtab_server.fronts.grpc.senders import Tenants
from trimtab_server.fronts.grpc.statuses import Context, abort
from trimtab_server.fronts.grpc.together import Together
from trimtab_server.fronts.grpc.unread import Unread
from trimtab_server.observing.load import Load
from trimtab_server.turns import Turns


class Entrance:
    """Counts the calls in flight, and refuses new ones while the server drains: gRPC's own stop would cancel
    calls that have arrived but were not taken up, and a client may not retry those.

    A call that the guard refuses is answered before its message is read. If `load` is given, each unary
    answer carries a load report; streams need none, since they stay on their server. `observed` sees every
    call, refused or not, except health checks and reflection.
    """

    def __init__(
        self,
        intake: Intake,
        unread: Unread,
        tenants: Tenants,
        guard: Guard,
        load: Load | None = None,
        turns: Turns | None = None,
        pace: Pacer | None = None,
        observed: CallObserver | None = None,
        lobby: Lobby | None = None,
    ) -> None:
        self.intake = intake
        self.unread = unread
        self.tenants = tenants
        self.guard = guard
        self.load = load
        self.observed = observed
        self.pace = pace or Pacer()
        self.turns = turns or Turns()
        self.together = Together()
        self.lobby = lobby or Lobby(self.turns)
        self._draining = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Refuse new calls, and wait at most so many seconds until the open ones are answered."""
        self._draining = True
        self.pace.free()
        self.lobby.free()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def wait_in_lobby(self, peer: str) -> None:
        """Wait until a call of this connection is let in. If it is cancelled, it keeps its place for a while:
        otherwise, more would arrive."""
        try:
            await self.lobby.wait(peer)
        except asyncio.CancelledError:
            await self.pace.through(peer, CANCELLED)
            raise

    def admit(self, method: str, context: Context) -> Caller:
        """The call's caller; Unauthenticated or PermissionDenied if the call is not allowed."""
        metadata = (context.invocation_metadata() or ()) if self.guard.reads_metadata else ()
        return self.guard.admit(method, metadata)

    async def refuse(self, context: Context, error: TrimtabError) -> NoReturn:
        """Answer a call with an error before its message is read."""
        await self.pace.wait(context.peer(), FAILED)
        await abort(context, error)

    def open(self, caller: Caller, context: Context, request_id: str, *, counted: bool) -> OpenCall:
        """Take up a call. Unavailable while the server drains; ResourceExhausted if there is no room."""
        if counted and self._draining:
            raise Unavailable("the server is draining: try another one")
        sender = self.tenants.of(caller, context)
        call = self.intake.open(caller, sender, context, asyncio.current_task(), request_id)
        if counted:
            if not self._calls:
                self._idle.clear()
            self._calls += 1
        return call

    def close(self, call: OpenCall, *, counted: bool) -> None:
        """The call is over."""
        self.intake.close(call)
        if counted:
            self._calls -= 1
            if not self._calls:
                self._idle.set()
