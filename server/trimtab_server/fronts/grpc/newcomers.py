"""Keeps room for new connections: when a port is nearly full, idle connections are closed.

gRPC refuses connections beyond a number, and closes those without calls only after a fixed time. Until then,
one client with many idle connections would keep everybody else out. A client whose idle connection was closed
reconnects at its next call.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from trimtab_server.fronts.grpc.sockets import Address

log = logging.getLogger(__name__)

# The share of a port's connections that is kept free.
FREE = 1 / 16
# A connection is idle after this time without a call, and sooner if it never had one. Until then, a call may
# be on its way.
IDLE_SECONDS, UNUSED_SECONDS = 5.0, 1.0
# Between two checks.
LOOK_SECONDS = 0.5


def longest_idle(connections: Collection[Address], idle: Mapping[Address, float], most: int) -> list[Address]:
    """The connections to close so that at most `most` remain, if enough of them are idle.

    `idle`: since when connections without calls are idle. Each time, the host with the most connections loses
    the one that has been idle for longest.
    """
    of_host = Counter(host for host, _ in connections)
    waiting: dict[object, list[tuple[float, Address]]] = {}
    for address, since in sorted(idle.items(), key=lambda each: -each[1]):
        waiting.setdefault(address[0], []).append((since, address))
    chosen: list[Address] = []
    while len(connections) - len(chosen) > most and waiting:
        host = max(waiting, key=lambda each: (of_host[each], -waiting[each][-1][0]))  # type: ignore[index]
        chosen.append(waiting[host].pop()[1])
        of_host[host] -= 1  # type: ignore[index]
        if not waiting[host]:
            del waiting[host]
    return chosen


class Newcomers:
    """Keeps room on one port that accepts at most `max_connections`.

    `files` counts the open files, which include one for each connection. `connections` lists the connected
    peers, `used` those that had a call since it was last asked; `close` closes connections.
    """

    def __init__(
        self,
        max_connections: int,
        files: Callable[[], int],
        connections: Callable[[], Collection[Address]],
        used: Callable[[], Collection[Address]],
        close: Callable[[Collection[Address]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_connections = max_connections
        self._most = max_connections - int(max_connections * FREE)
        self._files = files
        self._connections = connections
        self._used = used
        self._close = close
        self._clock = clock
        self._last: dict[Address, float] = {}  # when each connection had a call, or came
        self._served: set[Address] = set()  # those that have had calls

    async def watch(self) -> None:
        """Check until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Close idle connections if there are too many."""
        used = self._used()
        if self._files() <= self._most:  # listing the connections takes milliseconds
            self._last.clear()
            self._served.clear()
            return
        now, there = self._clock(), self._connections()
        self._last = {each: now if each in used else self._last.get(each, now) for each in there}
        self._served = self._served.union(used).intersection(there)
        if len(there) <= self._most:
            return
        idle = {
            each: when
            for each, when in self._last.items()
            if now - when >= (IDLE_SECONDS if each in self._served else UNUSED_SECONDS)
        }
        chosen = longest_idle(there, idle, self._most)
        if chosen:
            log.warning(
                "%d connections are open, of %d (limits.max_connections): closed %d that were idle, the "
                "longest of them for %.0f s",
                len(there), self._max_connections, len(chosen), now - min(idle[each] for each in chosen),
            )  # fmt: skip
            self._close(chosen)
