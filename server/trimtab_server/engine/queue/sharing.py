"""Identical items are computed once: requests join items in flight, and recent results may be cached.

Sans-IO, and not thread-safe: the engine's lock guards it. An item is identified by its model, the outputs
wanted of it, its payload's key (the content itself, since hashes can collide), and its tenant: otherwise, the
speed of an answer would tell what other tenants asked. The configuration may leave the tenant out.
"""

from typing import Generic, Protocol, TypeAlias, TypeVar

from trimtab.kinds import Priority
from trimtab.values.column import Columns
from trimtab_server.engine.batch import Item, Model, Payload, Wanted
from trimtab_server.lru import LruCache

Key: TypeAlias = tuple[Model, bytes, str, Wanted]

# What a cached item takes besides its numbers and its key's bytes: the objects that hold them.
ENTRY_BYTES = 500
# The same of each of its columns.
COLUMN_BYTES = 300


class Waiter(Protocol):
    """Who waits for items: hashed by identity."""

    deadline: float | None  # on the engine's clock; None: no deadline


W = TypeVar("W", bound=Waiter)


class Sharing(Generic[W]):
    """The items in flight, and the cached ones."""

    def __init__(self, *, single_flight: bool, across_tenants: bool, cache_bytes: int) -> None:
        self._single_flight = single_flight
        self._across_tenants = across_tenants
        self._cache_bytes = cache_bytes
        # By priority, since an interactive request that joined a bulk item would have to wait for its turn.
        self._flying: dict[Priority, dict[Key, Item]] = {"interactive": {}, "bulk": {}}
        self._cache: LruCache[Key, Columns] = LruCache(cache_bytes, _size)

    @property
    def bytes(self) -> int:
        """Of the cache, including keys."""
        return self._cache.bytes

    def key(self, model: Model, payload: Payload, wanted: Wanted, tenant: str) -> Key:
        """What two items must have in common to share a result."""
        return model, payload.key, "" if self._across_tenants else tenant, wanted

    def recall(self, key: Key) -> Columns | None:
        """The cached result of one item, if there is one."""
        return self._cache.get(key) if self._cache_bytes else None

    def flying(self, key: Key, priority: Priority) -> Item | None:
        """The item in flight that computes this, and can be joined."""
        return self._flying[priority].get(key)

    def begin(self, waiter: W, row: int, key: Key, payload: Payload, tenant: str, priority: Priority) -> Item:
        """A new item, whose result is row `row` of `waiter`."""
        item = Item(key[0], payload, key[3], waiter.deadline, tenant, priority, key, {waiter: [row]})
        if self._single_flight:
            self._flying[priority][key] = item
        return item

    def join(self, waiter: W, row: int, item: Item) -> bool:
        """Join those who wait for an item; True if that has moved its deadline."""
        item.waiters.setdefault(waiter, []).append(row)
        moved = item.deadline is not None and (waiter.deadline is None or waiter.deadline > item.deadline)
        if moved:
            item.deadline = waiter.deadline
        return moved

    def leave(self, waiter: W, item: Item) -> bool:
        """Wait for an item no longer; True if nobody else does, so that it need not be computed."""
        item.waiters.pop(waiter, None)
        if not item.waiters:
            self._land(item)
            return True
        deadlines = [other.deadline for other in item.waiters]
        patient = [deadline for deadline in deadlines if deadline is not None]
        item.deadline = max(patient) if len(patient) == len(deadlines) else None
        return False

    def finish(self, item: Item, result: Columns | None, place: int = 0) -> dict[W, list[int]]:
        """An item was computed, and is at position `place` of a result; or it has failed (None). From now on,
        it cannot be joined. Returns who waits for it."""
        self._land(item)
        if result is not None and self._cache_bytes:
            own = {name: result[name].only(place) for name in item.wanted}
            # A result that is not finite fails its request; cached, it would fail every later one.
            if all(column.finite for column in own.values()):
                # Copies, since a view would keep the whole batch's result.
                self._cache.put(item.key, {name: column.copy() for name, column in own.items()})
        return item.waiters

    def close(self, model: Model) -> None:
        """Forget the results of a model that is unloaded."""
        for key in [key for key in self._cache if key[0] is model]:
            self._cache.discard(key)

    def _land(self, item: Item) -> None:
        flying = self._flying[item.priority]
        if flying.get(item.key) is item:
            del flying[item.key]


def _size(key: Key, result: Columns) -> int:
    columns = sum(COLUMN_BYTES + column.nbytes for column in result.values())
    return ENTRY_BYTES + len(key[1]) + len(key[2]) + columns
