"""Bounds the answers that clients have not read yet: gRPC keeps each in memory until it is read.

Room is shared as in admission (admission.py): a tenant may hold a multiple of the room that is left, and each
of its connections a part of that, so that there is always room for others. A connection that does not read an
answer in time is closed; if there is no room, the slowest are closed after a second. Sans-IO.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from trimtab.errors import ResourceExhausted

log = logging.getLogger(__name__)

# Copies of each answer in memory: the serialised one, and gRPC's.
COPIES = 2
# How many times the room that is left one may hold: a single tenant gets up to 8/9 of all room, a single
# connection up to a quarter.
TENANT, CONNECTION = 8, 1 / 3
# Connections that have not read an answer for this long are closed if others find no room.
PATIENCE_SECONDS = 1.0
# Finding a connection's socket means looking at all of them: so this share of the room is freed at a time.
FREE = 0.5
RETRY_SECONDS = 1.0


class _UnreadPeer:
    """The unread answers of one tenant on one connection."""

    __slots__ = ("accounts", "bytes", "gone", "lost", "peer", "refused", "tenant", "writes")

    def __init__(self, tenant: str, peer: str) -> None:
        self.tenant = tenant
        self.peer = peer
        self.accounts = 0  # that are open
        self.bytes = 0
        self.refused = 0  # bytes of the last answer that found no room
        self.writes: dict[UnreadAnswers, float] = {}  # answers being sent, and since when; the oldest first
        self.gone = False  # closed: it no longer counts
        self.lost = False  # it could not be closed

    def waits(self, now: float) -> float:
        """How long its oldest answer has been on its way; 0 if nothing can be done about it."""
        return 0.0 if self.lost else now - next(iter(self.writes.values()), now)


class Unread:
    """Counts the bytes of unread answers, by tenant and connection. A single answer may have any size.

    `hang_up` closes the connections of peers, and returns those that it found.
    """

    def __init__(
        self,
        limit: int,
        seconds: float,
        hang_up: Callable[[Collection[str]], Collection[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.seconds = seconds
        self.bytes = 0
        self.clock = clock
        self._hang_up = hang_up
        self._tenants: dict[str, int] = {}  # bytes, of each that holds any
        self._connections: dict[tuple[str, str], _UnreadPeer] = {}

    def account(self, tenant: str, peer: str) -> "UnreadAnswers":
        """An account for the answers of one call; to be closed when the call is over."""
        connection = self._connections.get((tenant, peer))
        if connection is None:
            connection = self._connections[tenant, peer] = _UnreadPeer(tenant, peer)
        connection.accounts += 1
        return UnreadAnswers(self, connection)

    def end_slow(self) -> None:
        """Close connections that have not read an answer in time. To be called regularly."""
        now = self.clock()
        self._end([each for each in self._connections.values() if each.waits(now) > self.seconds])

    def check(self, tenant: str, peer: str) -> None:
        """ResourceExhausted if there is still no room for the answer that the connection was last refused. To
        be called before any work is done for a call."""
        connection = self._connections.get((tenant, peer))
        if connection is not None and connection.refused:
            self.admit(connection, connection.refused)

    def admit(self, connection: _UnreadPeer, size: int) -> None:
        """ResourceExhausted if so many more bytes are too many: in total, for the tenant, or for the
        connection."""
        full = self.bytes and self._full(connection.tenant, size)
        if full:
            self._make_room(connection.tenant, size)
            full = self.bytes and self._full(connection.tenant, size)
        left, held = self.limit - self.bytes - size, connection.bytes
        if full:
            whose = "all connections" if left < 0 else "your tenant's connections"
        elif held and held + size > CONNECTION * left:
            whose = "this connection"
        else:
            connection.refused = 0
            return
        connection.refused = size
        raise ResourceExhausted(
            f"too many unread answers to {whose}: this server keeps {self.limit} bytes of them "
            "(limits.max_unread_bytes), part of that for others. Read them, then try again",
            RETRY_SECONDS,
        )

    def count(self, connection: _UnreadPeer, size: int) -> None:
        """Add to the bytes held, or subtract."""
        if connection.gone:
            return
        connection.bytes += size
        self.bytes += size
        held = self._tenants.get(connection.tenant, 0) + size
        if held:
            self._tenants[connection.tenant] = held
        else:
            self._tenants.pop(connection.tenant, None)

    def leave(self, connection: _UnreadPeer) -> None:
        """One of its accounts is closed."""
        connection.accounts -= 1
        if not connection.accounts and not connection.gone:
            del self._connections[connection.tenant, connection.peer]

    def _full(self, tenant: str, size: int) -> bool:
        left, held = self.limit - self.bytes - size, self._tenants.get(tenant, 0)
        return left < 0 or (held > 0 and held + size > TENANT * left)

    def _make_room(self, tenant: str, size: int) -> None:
        """Close the slowest connections, starting with the tenant that holds the most; only this tenant's
        own, if it is the one that holds too much."""
        now, others = self.clock(), self.bytes + size > self.limit
        slow = [
            each
            for each in self._connections.values()
            if each.waits(now) > PATIENCE_SECONDS and (others or each.tenant == tenant)
        ]
        slow.sort(key=lambda each: (self._tenants.get(each.tenant, 0), each.waits(now)), reverse=True)
        after, chosen = self.bytes + size, []
        for each in slow:
            # At other tenants' cost, no more is freed than this answer needs.
            if after <= FREE * self.limit or (after <= self.limit and each.tenant != slow[0].tenant):
                break
            chosen.append(each)
            after -= each.bytes
        self._end(chosen)

    def _end(self, connections: Collection[_UnreadPeer]) -> None:
        if not connections:
            return
        gone = set(self._hang_up([each.peer for each in connections]))
        for each in connections:
            each.lost = True
        for each in [each for each in self._connections.values() if each.peer in gone]:
            log.warning(
                "closed the connection of %s, which does not read its answers: %d bytes",
                each.peer,
                each.bytes,
            )
            self.count(each, -each.bytes)
            each.gone = True
            del self._connections[each.tenant, each.peer]


class UnreadAnswers:
    """The unread answers of one call."""

    def __init__(self, unread: Unread, connection: _UnreadPeer) -> None:
        self._unread = unread
        self._connection = connection
        self._bytes = 0

    def add(self, size: int) -> None:
        """An answer is about to be written; ResourceExhausted if too much is unread already."""
        unread, connection, size = self._unread, self._connection, COPIES * size
        unread.admit(connection, size)
        self._bytes += size
        unread.count(connection, size)

    def send(self) -> None:
        """An answer is on its way, until the call is over."""
        self._connection.writes[self] = self._unread.clock()

    @contextmanager
    def sending(self, size: int) -> Iterator[None]:
        """While an answer is being sent; afterwards it no longer counts."""
        self.send()
        yield
        del self._connection.writes[self]
        self._bytes -= COPIES * size
        self._unread.count(self._connection, -COPIES * size)

    def close(self, context: object = None) -> None:
        """The call is over, and none of its answers is kept. Also for a context's callback."""
        self._connection.writes.pop(self, None)
        self._unread.count(self._connection, -self._bytes)
        self._bytes = 0
        self._unread.leave(self._connection)
