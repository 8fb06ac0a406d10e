"""A cache that is bounded by the bytes of what it holds."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Where there is no room, the least recently used entries go. Not thread-safe.

    size: the bytes that a key and its value take.
    """

    def __init__(self, most_bytes: int, size: Callable[[K, V], int]) -> None:
        self.bytes = 0
        self._most_bytes = most_bytes
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()  # the least recently used first

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def get(self, key: K) -> V | None:
        """The value of this key, which is used by that; None where it is not, or no longer, there."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value, in place of any that this key had; not one that is larger than the whole cache."""
        self.discard(key)
        size = self._size(key, value)
        if size > self._most_bytes:
            return
        self._values[key] = value
        self.bytes += size
        while self.bytes > self._most_bytes:
            self.discard(next(iter(self._values)))

    def discard(self, key: K) -> None:
        """Let go of a key's value, if it has one."""
        value = self._values.pop(key, None)
        if value is not None:
            self.bytes -= self._size(key, value)
