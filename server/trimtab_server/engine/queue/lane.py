"""The items of one model and priority that wait for a device, and which of them run together: sans-IO."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable
from itertools import islice
from typing import TypeAlias

from trimtab.kinds import Priority
from trimtab_server.engine.batch import Item
from trimtab_server.engine.queue.cost import Cost

# Up to so many items are split into batches exactly; that takes time with their square.
EXACT = 32
# While several tenants wait, what is due within so many batches may ride along.
AHEAD = 4
# Interactive work has this share of the devices to bulk work's 1, while there is both.
WEIGHTS: dict[Priority, float] = {"interactive": 16.0, "bulk": 1.0}

Lengths: TypeAlias = list[tuple[int, int]]  # (length, number), sorted


class Lane:
    """The items of one model and priority, in the order of their turns and in the order of their lengths.

    `weight` is a tenant's share beside others.
    """

    def __init__(
        self, cost: Cost, max_positions: int, max_texts: int, weight: Callable[[str], float]
    ) -> None:
        self.cost = cost
        self.max_positions = max_positions
        self.max_texts = max_texts
        self.weight = weight
        self.items: dict[int, Item] = {}
        self.turns: list[tuple[float, int]] = []  # a heap of (stamp, number); may hold items that left
        self.lengths: Lengths = []
        self.tenants: dict[str, dict[int, float]] = {}  # the stamps of each one's items, in their order

    def add(self, number: int, item: Item, stamp: float) -> None:
        self.items[number] = item
        heapq.heappush(self.turns, (stamp, number))
        insort(self.lengths, (item.length, number))
        self.tenants.setdefault(item.tenant, {})[number] = stamp

    def seconds(self, item: Item) -> float:
        """What an item adds to a run."""
        return self.cost.seconds(1, item.length, item.length) - self.cost.run_seconds

    def remove(self, number: int) -> Item:
        item = self.items.pop(number)
        del self.lengths[bisect_left(self.lengths, (item.length, number))]
        stamps = self.tenants[item.tenant]
        del stamps[number]
        if not stamps:
            del self.tenants[item.tenant]
        if len(self.turns) > 64 and len(self.turns) > 2 * len(self.items):
            self.turns = [turn for turn in self.turns if turn[1] in self.items]
            heapq.heapify(self.turns)
        return item

    def next_turn(self) -> tuple[float, int]:
        while self.turns[0][1] not in self.items:
            heapq.heappop(self.turns)
        return self.turns[0]

    def batch(self, number: int, stamp: float, cost: Cost, worthwhile: float) -> tuple[Item, ...]:
        """What runs with item `number`, whose turn it is, where a run has this cost."""
        lengths = self.lengths if len(self.tenants) == 1 else self._due(number, stamp, cost, worthwhile)
        anchor = bisect_left(lengths, (self.items[number].length, number))
        choose = self._split if len(lengths) <= EXACT else self._grow
        first, last = choose(lengths, anchor, cost, worthwhile)
        return tuple(self.items[each] for _, each in lengths[first:last])

    def _due(self, number: int, stamp: float, cost: Cost, worthwhile: float) -> Lengths:
        """What is due within the next batches: of each tenant as much as its share of them."""
        weights = {tenant: self.weight(tenant) for tenant in self.tenants}
        whole, priority = sum(weights.values()), self.items[number].priority
        until = stamp + AHEAD * cost.run_seconds / worthwhile / (WEIGHTS[priority] * whole)
        due = [(self.items[number].length, number)]
        for tenant, stamps in self.tenants.items():
            most = 1 + int(AHEAD * self.max_texts * weights[tenant] / whole)
            for each, when in islice(stamps.items(), most):
                if when > until:
                    break
                if each != number:
                    due.append((self.items[each].length, each))
        return sorted(due)

    def _fits(self, cost: Cost, worthwhile: float, texts: int, tokens: int, longest: int) -> bool:
        return texts == 1 or (
            texts <= self.max_texts
            and texts * longest <= self.max_positions
            and cost.tokens(texts, tokens, longest) * worthwhile <= cost.run_tokens
        )

    def _split(self, lengths: Lengths, anchor: int, cost: Cost, worthwhile: float) -> tuple[int, int]:
        """The anchor's part in the split of all lengths into runs that costs least."""
        least = [0.0]  # of the first n lengths
        starts = [0]  # of the last run of that split
        for last in range(1, len(lengths) + 1):
            longest = lengths[last - 1][0]
            best, start, tokens = float("inf"), last - 1, 0
            for first in range(last - 1, -1, -1):
                tokens += lengths[first][0]
                if not self._fits(cost, worthwhile, last - first, tokens, longest):
                    break
                seconds = least[first] + cost.seconds(last - first, tokens, longest)
                if seconds < best:
                    best, start = seconds, first
            least.append(best)
            starts.append(start)
        last = len(lengths)
        while starts[last] > anchor:
            last = starts[last]
        return starts[last], last

    def _grow(self, lengths: Lengths, anchor: int, cost: Cost, worthwhile: float) -> tuple[int, int]:
        """From the anchor to either side, by whichever neighbour makes the batch do more a second."""
        first, last, tokens = anchor, anchor + 1, lengths[anchor][0]
        rate = tokens / cost.seconds(1, tokens, tokens)
        while True:
            best = (rate, first, last, tokens)
            for low, high in ((first - 1, last), (first, last + 1)):
                if low < 0 or high > len(lengths):
                    continue
                more = tokens + lengths[low if low < first else high - 1][0]
                longest = lengths[high - 1][0]
                if self._fits(cost, worthwhile, high - low, more, longest):
                    faster = more / cost.seconds(high - low, more, longest)
                    if faster >= best[0]:
                        best = (faster, low, high, more)
            if best[1:3] == (first, last):
                return first, last
            rate, first, last, tokens = best
