"""Calls that come to nothing cost a client next to nothing, and the server some of its one event loop.

Those are calls of unknown methods, without credentials, taken back before their message came, and all that
ask for no vectors. Each connection may have so many of them a second, and those beyond that are answered
later: a call that waits takes one of the few places that its connection has, so that no more come. Calls
that are work are not paced: the devices are shared between tenants.
"""

import asyncio

# The generic cell rate algorithm (ITU-T I.371): so many at once, then one after so long.
BURST = 32
INTERVAL_SECONDS = 0.02
LONGEST_SECONDS = 1.0
# Connections that have sent such calls; who was quiet for long is forgotten.
REMEMBERED = 1024


class Pace:
    """When the next such call of each connection may be answered."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def delay(self, peer: str, now: float) -> float:
        """Seconds until one more call of this connection may be answered."""
        if len(self._due) > REMEMBERED:
            self._due = {each: due for each, due in self._due.items() if due > now}
        longest = now + BURST * INTERVAL_SECONDS + LONGEST_SECONDS
        due = self._due[peer] = min(max(self._due.get(peer, now), now) + INTERVAL_SECONDS, longest)
        return max(0.0, due - now - BURST * INTERVAL_SECONDS)

    async def wait(self, peer: str) -> None:
        """Until that time, even where the call is cancelled meanwhile: its place is not free before."""
        loop = asyncio.get_running_loop()
        until, cancelled = loop.time() + self.delay(peer, loop.time()), False
        while (left := until - loop.time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
