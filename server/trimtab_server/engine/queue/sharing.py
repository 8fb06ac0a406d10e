"""Identical items are computed once: those in flight join, those lately computed may be remembered.

Sans-IO, and not thread-safe: the engine keeps it under its lock. An item is known by its model, by what is
wanted of it, and by its payload's key, which is whole and no hash that could be another's; and by its tenant,
so that nobody learns from how fast an answer comes what other tenants asked, unless the configuration allows
that.
"""

from collections import OrderedDict
from typing import Generic, Protocol, TypeAlias, TypeVar

from trimtab.kinds import Priority
from trimtab.values.column import Columns
from trimtab_server.engine.batch import Item, Model, Payload, Wanted

Key: TypeAlias = tuple[Model, bytes, str, Wanted]

# What a remembered item costs beside its numbers and its key's bytes: the objects that hold them.
ENTRY_BYTES = 500
# The same of each of its columns.
COLUMN_BYTES = 300


class Waiter(Protocol):
    """Who waits for items: hashed by identity."""

    deadline: float | None  # on the engine's clock; None: no deadline


W = TypeVar("W", bound=Waiter)


class Sharing(Generic[W]):
    """The items in flight, and those remembered."""

    def __init__(self, *, single_flight: bool, across_tenants: bool, cache_bytes: int) -> None:
        self.bytes = 0  # of what is remembered, keys included
        self._single_flight = single_flight
        self._across_tenants = across_tenants
        self._cache_bytes = cache_bytes
        # Interactive and bulk are kept apart in flight: who joined a bulk item would wait its turn.
        self._flying: dict[Priority, dict[Key, Item]] = {"interactive": {}, "bulk": {}}
        self._cache: OrderedDict[Key, Columns] = OrderedDict()  # the least lately used first

    def key(self, model: Model, payload: Payload, wanted: Wanted, tenant: str) -> Key:
        """What two items must have in common to share a result."""
        return model, payload.key, "" if self._across_tenants else tenant, wanted

    def recall(self, key: Key) -> Columns | None:
        """The result of an item computed before, of one item each, where it is still remembered."""
        if not self._cache_bytes or key not in self._cache:
            return None
        self._cache.move_to_end(key)
        return self._cache[key]

    def flying(self, key: Key, priority: Priority) -> Item | None:
        """The item that computes this already, and may be joined."""
        return self._flying[priority].get(key)

    def begin(self, waiter: W, row: int, key: Key, payload: Payload, tenant: str, priority: Priority) -> Item:
        """A new item, whose result is row `row` of `waiter`."""
        item = Item(key[0], payload, key[3], waiter.deadline, tenant, priority, key, {waiter: [row]})
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

    def finish(self, item: Item, result: Columns | None, place: int = 0) -> dict[W, list[int]]:
        """An item is computed, and stands at `place` in a result; or it has failed (None). Nobody can join it
        any more. Who waits for it."""
        self._land(item)
        if result is not None and self._cache_bytes:
            own = {name: result[name].only(place) for name in item.wanted}
            # What is not finite fails its request, and would fail every later one.
            if all(column.finite for column in own.values()):
                # What is a view of a batch's result would keep all of that.
                self._remember(item.key, {name: column.copy() for name, column in own.items()})
        return item.waiters

    def close(self, model: Model) -> None:
        """Forget the results of a model that is unloaded."""
        for key in [key for key in self._cache if key[0] is model]:
            self._forget(key)

    def _land(self, item: Item) -> None:
        flying = self._flying[item.priority]
        if flying.get(item.key) is item:
            del flying[item.key]

    def _remember(self, key: Key, result: Columns) -> None:
        if key in self._cache:  # computed twice: as interactive and as bulk, or without single_flight
            self._forget(key)
        self._cache[key] = result
        self.bytes += _size(key, result)
        while self.bytes > self._cache_bytes:
            self._forget(next(iter(self._cache)))

    def _forget(self, key: Key) -> None:
        self.bytes -= _size(key, self._cache.pop(key))


def _size(key: Key, result: Columns) -> int:
    columns = sum(COLUMN_BYTES + column.nbytes for column in result.values())
    return ENTRY_BYTES + len(key[1]) + len(key[2]) + columns
