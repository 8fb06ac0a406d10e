"""Bounds the answers that clients have not read yet: gRPC keeps each in memory for as long as that takes."""

from collections import Counter

from trimtab.errors import ResourceExhausted

# One connection may hold a part of the whole, so that a client that does not read harms itself first.
CONNECTIONS = 4
RETRY_SECONDS = 1.0


class Unread:
    """Counts bytes, of all answers and by connection. One answer alone may have any size."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.by_peer: Counter[str] = Counter()

    def account(self, peer: str) -> "Account":
        """For the answers of one call of a connection; to be closed when the call is over."""
        return Account(self, peer)


class Account:
    """What one call has not been read of."""

    def __init__(self, unread: Unread, peer: str) -> None:
        self._unread = unread
        self._peer = peer
        self._bytes = 0

    def add(self, size: int) -> None:
        """An answer is about to be written; ResourceExhausted where too much is unread already."""
        unread = self._unread
        own, others = unread.by_peer[self._peer], unread.bytes
        for whose, held, limit in (
            ("this connection", own, unread.limit // CONNECTIONS),
            ("all connections", others, unread.limit),
        ):
            if held and held + size > limit:
                raise ResourceExhausted(
                    f"{held} bytes of answers to {whose} were not read yet, and this server keeps {limit} "
                    "(by limits.max_unread_bytes): read them, then try again",
                    RETRY_SECONDS,
                )
        self._count(size)

    def remove(self, size: int) -> None:
        """An answer has left."""
        self._count(-size)

    def close(self) -> None:
        """The call is over, and nothing of it is kept."""
        self._count(-self._bytes)

    def _count(self, size: int) -> None:
        unread, peer = self._unread, self._peer
        self._bytes += size
        unread.bytes += size
        unread.by_peer[peer] += size
        if not unread.by_peer[peer]:
            del unread.by_peer[peer]
