"""Bounds the answers that clients have not read yet: gRPC keeps each in memory for as long as that takes.

Room is shared as at the door (admission.py): a tenant may hold some times what is left, and each of its
connections a part of that, so that there is room for whoever comes. Who does not take an answer within a time
is hung up on; where there is no room, the slowest are, after a second. Sans-IO.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from trimtab.errors import ResourceExhausted

log = logging.getLogger(__name__)

# Bytes held for each byte of an answer: as it was serialised, and gRPC's copy of that.
COPIES = 2
# What one may hold, as times the room that is left: a tenant alone gets to 8/9 of it all, a connection
# alone to a quarter.
TENANT, CONNECTION = 8, 1 / 3
# Who has not taken an answer for as long is hung up on, where others find no room.
PATIENCE_SECONDS = 1.0
# To find a connection's socket takes a look at each of them: so much is made free at a time.
FREE = 0.5
RETRY_SECONDS = 1.0


class _UnreadPeer:
    """What one connection has not been read of for one tenant."""

    __slots__ = ("accounts", "bytes", "gone", "lost", "peer", "refused", "tenant", "writes")

    def __init__(self, tenant: str, peer: str) -> None:
        self.tenant = tenant
        self.peer = peer
        self.accounts = 0  # that are open
        self.bytes = 0
        self.refused = 0  # bytes of the answer that there was no room for last
        self.writes: dict[UnreadAnswers, float] = {}  # answers on their way, and since when; the oldest first
        self.gone = False  # hung up on: nothing of it counts any more
        self.lost = False  # it cannot be hung up on

    def waits(self, now: float) -> float:
        """Seconds since its oldest answer is on its way; 0 where there is nothing to be done about it."""
        return 0.0 if self.lost else now - next(iter(self.writes.values()), now)


class Unread:
    """Counts bytes, of all answers, by tenant and by connection. One answer alone may have any size.

    `hang_up` closes the connections of some peers, and returns those of them that it found.
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
        self._tenants: dict[str, int] = {}  # what each that holds anything holds
        self._connections: dict[tuple[str, str], _UnreadPeer] = {}

    def account(self, tenant: str, peer: str) -> "UnreadAnswers":
        """For the answers of one call of a connection; to be closed when the call is over."""
        connection = self._connections.get((tenant, peer))
        if connection is None:
            connection = self._connections[tenant, peer] = _UnreadPeer(tenant, peer)
        connection.accounts += 1
        return UnreadAnswers(self, connection)

    def end_slow(self) -> None:
        """Hang up on who has not taken an answer within the time. To be called now and then."""
        now = self.clock()
        self._end([each for each in self._connections.values() if each.waits(now) > self.seconds])

    def check(self, tenant: str, peer: str) -> None:
        """ResourceExhausted where there would still be no room for the answer that the connection was last
        refused: before anything is done for a call."""
        connection = self._connections.get((tenant, peer))
        if connection is not None and connection.refused:
            self.admit(connection, connection.refused)

    def admit(self, connection: _UnreadPeer, size: int) -> None:
        """ResourceExhausted where so many bytes more are too many: all in all, of the tenant, or of the
        connection."""
        full = self._full(connection.tenant, size)
        if full:
            self._make_room(connection.tenant, size)
            full = self._full(connection.tenant, size)
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
            f"too many answers to {whose} were not read yet: this server keeps {self.limit} bytes of them "
            "(limits.max_unread_bytes), some of these for others. Read them, then try again",
            RETRY_SECONDS,
        )

    def count(self, connection: _UnreadPeer, size: int) -> None:
        """So many bytes more are held, or fewer."""
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
        if not self.bytes:
            return False
        left, held = self.limit - self.bytes - size, self._tenants.get(tenant, 0)
        return left < 0 or (held > 0 and held + size > TENANT * left)

    def _make_room(self, tenant: str, size: int) -> None:
        """Hang up on the slowest, of the tenant that has the most first; of this one alone where that is it
        that has too much."""
        now, others = self.clock(), self.bytes + size > self.limit
        slow = [
            each
            for each in self._connections.values()
            if each.waits(now) > PATIENCE_SECONDS and (others or each.tenant == tenant)
        ]
        slow.sort(key=lambda each: (self._tenants.get(each.tenant, 0), each.waits(now)), reverse=True)
        after, chosen = self.bytes + size, []
        for each in slow:
            # No more than room for this one is made at other tenants' cost.
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
            log.warning("hung up on %s, which does not read: %d bytes wait for it", each.peer, each.bytes)
            self.count(each, -each.bytes)
            each.gone = True
            del self._connections[each.tenant, each.peer]


class UnreadAnswers:
    """What one call has not been read of."""

    def __init__(self, unread: Unread, connection: _UnreadPeer) -> None:
        self._unread = unread
        self._connection = connection
        self._bytes = 0

    def add(self, size: int) -> None:
        """An answer is about to be written; ResourceExhausted where too much is unread already."""
        self._unread.admit(self._connection, COPIES * size)
        self._count(COPIES * size)

    def send(self) -> None:
        """An answer is on its way, until the call is over."""
        self._connection.writes[self] = self._unread.clock()

    @contextmanager
    def sending(self, size: int) -> Iterator[None]:
        """While an answer is on its way, which then has left."""
        self.send()
        yield
        del self._connection.writes[self]
        self._count(-COPIES * size)

    def done(self, context: object) -> None:
        """The same as `close`, as a context's callback."""
        self.close()

    def close(self) -> None:
        """The call is over, and nothing of it is kept."""
        self._connection.writes.pop(self, None)
        self._count(-self._bytes)
        self._unread.leave(self._connection)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._unread.count(self._connection, size)
