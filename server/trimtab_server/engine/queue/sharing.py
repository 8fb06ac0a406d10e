"""Identical texts are computed once: those in flight join, those lately computed may be remembered.

Sans-IO, and not thread-safe: the engine keeps it under its lock. A text is known by its model and by the
bytes of its token ids, never by a hash that could be another's; and by its tenant, so that nobody learns
from how fast an answer comes what other tenants asked, unless the configuration allows that.
"""

from collections import OrderedDict
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.kinds import Priority
from trimtab_server.engine.batch import Ids, Item, Model

Vector: TypeAlias = NDArray[np.float32]
Key: TypeAlias = tuple[Model, bytes, str]

# What a remembered vector costs beside its numbers and its key's bytes: the objects that hold them.
ENTRY_BYTES = 500


class Waiter(Protocol):
    """Who waits for texts: hashed by identity."""

    deadline: float | None  # on the engine's clock; None: no deadline


W = TypeVar("W", bound=Waiter)


class Sharing(Generic[W]):
    """The texts in flight, and the vectors remembered."""

    def __init__(self, *, single_flight: bool, across_tenants: bool, cache_bytes: int) -> None:
        self.bytes = 0  # of the vectors remembered, their keys included
        self._single_flight = single_flight
        self._across_tenants = across_tenants
        self._cache_bytes = cache_bytes
        # Interactive and bulk are kept apart in flight: who joined a bulk item would wait its turn.
        self._flying: dict[Priority, dict[Key, Item]] = {"interactive": {}, "bulk": {}}
        self._cache: OrderedDict[Key, Vector] = OrderedDict()  # the least lately used first

    def key(self, model: Model, ids: Ids, tenant: str) -> Key:
        """What two texts must have in common to share a vector."""
        return model, ids.tobytes(), "" if self._across_tenants else tenant

    def recall(self, key: Key) -> Vector | None:
        """The vector of a text computed before, where it is still remembered."""
        if not self._cache_bytes or key not in self._cache:
            return None
        self._cache.move_to_end(key)
        return self._cache[key]

    def flying(self, key: Key, priority: Priority) -> Item | None:
        """The item that computes this text already, and may be joined."""
        return self._flying[priority].get(key)

    def begin(self, waiter: W, row: int, key: Key, ids: Ids, tenant: str, priority: Priority) -> Item:
        """A new item, whose vector is row `row` of `waiter`."""
        item = Item(key[0], ids, waiter.deadline, tenant, priority, key, {waiter: [row]})
        if self._single_flight:
            self._flying[priority][key] = item
        return item

    def join(self, waiter: W, row: int, item: Item) -> bool:
        """Wait for an item that others wait for already; True where that has moved its deadline."""
        item.waiters.setdefault(waiter, []).append(row)
        moved = item.deadline is not None and (waiter.deadline is None or waiter.deadline > item.deadline)
        if moved:
            item.deadline = waiter.deadline
        return moved

    def leave(self, waiter: W, item: Item) -> bool:
        """Wait for an item no longer; True where nobody does any more, and it need not be computed."""
        item.waiters.pop(waiter, None)
        if not item.waiters:
            self._land(item)
            return True
        deadlines = [other.deadline for other in item.waiters]
        patient = [deadline for deadline in deadlines if deadline is not None]
        item.deadline = max(patient) if len(patient) == len(deadlines) else None
        return False

    def finish(self, item: Item, vector: Vector | None) -> dict[W, list[int]]:
        """An item is computed, or has failed (None): nobody can join it any more. Who waits for it."""
        self._land(item)
        # What is no vector fails its request, and would fail every later one.
        if vector is not None and self._cache_bytes and np.isfinite(vector).all():
            self._remember(item.key, vector)
        return item.waiters

    def close(self, model: Model) -> None:
        """Forget the vectors of a model that is unloaded."""
        for key in [key for key in self._cache if key[0] is model]:
            self._forget(key)

    def _land(self, item: Item) -> None:
        flying = self._flying[item.priority]
        if flying.get(item.key) is item:
            del flying[item.key]

    def _remember(self, key: Key, vector: Vector) -> None:
        if key in self._cache:  # computed twice: as interactive and as bulk, or without single_flight
            self._forget(key)
        self._cache[key] = vector.copy()  # a row of a batch would keep the whole batch
        self.bytes += _size(key, vector)
        while self.bytes > self._cache_bytes:
            self._forget(next(iter(self._cache)))

    def _forget(self, key: Key) -> None:
        self.bytes -= _size(key, self._cache.pop(key))


def _size(key: Key, vector: Vector) -> int:
    return ENTRY_BYTES + len(key[1]) + len(key[2]) + vector.nbytes
