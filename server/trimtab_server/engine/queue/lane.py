"""The items of one model and priority that wait for a device, and which of them run together: sans-IO."""

import heapq
from bisect import bisect_left
from collections.abc import Callable
from itertools import islice
from typing import TypeAlias

from trimtab.kinds import Priority
from trimtab_server.engine.batch import Item
from trimtab_server.engine.queue.cost import Cost

# Up to so many items are split into batches optimally, in quadratic time; a round has at least as many.
EXACT = 32
# A batch is poor if the fixed cost of its run is more than this share of it.
POOR = 0.2
# While several tenants wait, what is due within so many batches may ride along.
AHEAD = 4
# The shares of the devices, while there is both interactive and bulk work.
WEIGHTS: dict[Priority, float] = {"interactive": 16.0, "bulk": 1.0}

Lengths: TypeAlias = list[tuple[int, int]]  # (length, number), sorted


class Lane:
    """The items of one model and priority, in the order of their turns.

    One tenant's leave in rounds: the older half of what waits. Nothing younger rides along before these have
    left, unless the batch would be poor: otherwise an item of a rare length is overtaken again and again.
    `weight` is a tenant's share relative to others.
    """

    def __init__(
        self, cost: Cost, max_positions: int, max_items: int, weight: Callable[[str], float]
    ) -> None:
        self.cost = cost
        self.max_positions = max_positions
        self.max_items = max_items
        self.weight = weight
        self.items: dict[int, Item] = {}
        self.turns: list[tuple[float, int]] = []  # a heap of (stamp, number); may hold items that left
        self.round: Lengths = []
        self.youngest = -1  # the number of the round's youngest item
        self.tenants: dict[str, dict[int, float]] = {}  # the stamps of each one's items, in their order

    def add(self, number: int, item: Item, stamp: float) -> None:
        self.items[number] = item
        heapq.heappush(self.turns, (stamp, number))
        self.tenants.setdefault(item.tenant, {})[number] = stamp

    def seconds(self, item: Item) -> float:
        """What an item adds to a run."""
        units = item.payload.units
        return self.cost.unit_seconds * self.cost.units(1, units, units)

    def remove(self, number: int) -> Item:
        item = self.items.pop(number)
        if number <= self.youngest:
            del self.round[bisect_left(self.round, (item.units, number))]
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
        """The items that run together with item `number`, whose turn it is, if a run has this cost."""
        if len(self.items) == 1:
            return (self.items[number],)
        if len(self.tenants) > 1:
            chosen = self._chosen(self._due(number, stamp, cost, worthwhile), number, cost, worthwhile)
        else:
            if number > self.youngest:
                self._begin_round()
            chosen = self._chosen(self.round, number, cost, worthwhile)
            # Only what is left of a round: to begin another one costs as much as sorting it.
            left = len(self.round)
            if left <= EXACT and left < len(self.items) and _poor(chosen, cost):
                self._begin_round()
                chosen = self._chosen(self.round, number, cost, worthwhile)
        return tuple(self.items[each] for _, each in chosen)

    def _begin_round(self) -> None:
        oldest = list(islice(self.items.items(), max(EXACT, (len(self.items) + 1) // 2)))
        self.youngest = oldest[-1][0]
        self.round = sorted((item.units, number) for number, item in oldest)

    def _chosen(self, lengths: Lengths, number: int, cost: Cost, worthwhile: float) -> Lengths:
        """Those that run together with item `number`, of all that may."""
        anchor = bisect_left(lengths, (self.items[number].units, number))
        choose = self._split if len(lengths) <= EXACT else self._grow
        first, last = choose(lengths, anchor, cost, worthwhile)
        return lengths[first:last]

    def _due(self, number: int, stamp: float, cost: Cost, worthwhile: float) -> Lengths:
        """The items due within the next batches: of each tenant, as many as its share of them."""
        weights = {tenant: self.weight(tenant) for tenant in self.tenants}
        whole, priority = sum(weights.values()), self.items[number].priority
        until = stamp + AHEAD * cost.run_seconds / worthwhile / (WEIGHTS[priority] * whole)
        due = [(self.items[number].units, number)]
        for tenant, stamps in self.tenants.items():
            most = 1 + int(AHEAD * self.max_items * weights[tenant] / whole)
            for each, when in islice(stamps.items(), most):
                if when > until:
                    break
                if each != number:
                    due.append((self.items[each].units, each))
        return sorted(due)

    def _fits(self, cost: Cost, worthwhile: float, items: int, units: int, longest: int) -> bool:
        return items == 1 or (
            items <= self.max_items
            and items * longest <= self.max_positions
            and cost.units(items, units, longest) * worthwhile <= cost.run_units
        )

    def _split(self, lengths: Lengths, anchor: int, cost: Cost, worthwhile: float) -> tuple[int, int]:
        """The anchor's part in the split of all lengths into runs that costs least."""
        least = [0.0]  # of the first n lengths
        starts = [0]  # of the last run of that split
        for last in range(1, len(lengths) + 1):
            longest = lengths[last - 1][0]
            best, start, units = float("inf"), last - 1, 0
            for first in range(last - 1, -1, -1):
                units += lengths[first][0]
                if not self._fits(cost, worthwhile, last - first, units, longest):
                    break
                seconds = least[first] + cost.seconds(last - first, units, longest)
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
        first, last, units = anchor, anchor + 1, lengths[anchor][0]
        rate = units / cost.seconds(1, units, units)
        while True:
            best = (rate, first, last, units)
            for low, high in ((first - 1, last), (first, last + 1)):
                if low < 0 or high > len(lengths):
                    continue
                more = units + lengths[low if low < first else high - 1][0]
                longest = lengths[high - 1][0]
                if self._fits(cost, worthwhile, high - low, more, longest):
                    faster = more / cost.seconds(high - low, more, longest)
                    if faster >= best[0]:
                        best = (faster, low, high, more)
            if best[1:3] == (first, last):
                return first, last
            rate, first, last, units = best


def _poor(lengths: Lengths, cost: Cost) -> bool:
    """Whether the fixed cost is much of what their run costs."""
    seconds = cost.seconds(len(lengths), sum([units for units, _ in lengths]), lengths[-1][0])
    return cost.run_seconds > POOR * seconds
