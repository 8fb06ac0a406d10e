"""Which texts run together: a sans-IO policy, with no clock, thread, loop or device of its own.

Batching is by backpressure: nothing waits for a timer. Items gather while devices are busy; when one is
free, `pop` gives it a batch.

*Whose turn it is* follows start-time fair queueing (Goyal, Vin and Cheng, 1996): each item is stamped
with a virtual time, at which its flow (its tenant and priority) would get to it if all flows shared the
devices in proportion to their weights. The item with the least stamp is the batch's anchor. Within a flow
that is first come, first served; between tenants it is fair; interactive items go before bulk ones, and
yet nothing starves: a stamp, once given, is overtaken only by stamps below it.

*What rides along* are the anchor's neighbours in length, by the measured cost of the graph. Few items are
split into the batches that cost least altogether, and the anchor's is taken. Of many, the batch grows from
the anchor to either side as long as it finishes more tokens a second. It never grows past the point where
the fixed cost of a run is WORTHWHILE of the whole: a larger batch would only make its items wait. Nothing
bulk rides with what is interactive, and while there is both, bulk batches are short: a run cannot be
interrupted, and whoever arrives meanwhile waits for its end.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from trimtab_server.batch import Batch, Item, Model, Priority
from trimtab_server.cost import Cost

# A batch is large enough when the fixed cost of its run is this share of it.
WORTHWHILE = 0.02
# The same for a bulk batch while interactive work ran less than so many seconds ago.
BESIDE_INTERACTIVE = 0.1
LATELY = 1.0
# Up to so many items are split into batches exactly; that takes time with their square.
EXACT = 32
# Interactive work has this share of the devices to bulk work's 1, while there is both.
WEIGHTS: dict[Priority, float] = {"interactive": 16.0, "bulk": 1.0}

Flow: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Popped:
    """What `pop` found: a batch to run, and items whose deadline passed before they could be."""

    batch: Batch | None
    expired: tuple[Item, ...]


class _Lane:
    """The items of one model and priority, in the order of their turns and in the order of their lengths."""

    def __init__(self, cost: Cost, max_positions: int, max_texts: int) -> None:
        self.cost = cost
        self.max_positions = max_positions
        self.max_texts = max_texts
        self.items: dict[int, Item] = {}
        self.turns: list[tuple[float, int]] = []  # a heap of (stamp, number); may hold items that left
        self.lengths: list[tuple[int, int]] = []  # (length, number), sorted

    def add(self, number: int, item: Item, stamp: float) -> None:
        self.items[number] = item
        heapq.heappush(self.turns, (stamp, number))
        insort(self.lengths, (item.length, number))

    def remove(self, number: int) -> Item:
        item = self.items.pop(number)
        del self.lengths[bisect_left(self.lengths, (item.length, number))]
        if len(self.turns) > 64 and len(self.turns) > 2 * len(self.items):
            self.turns = [turn for turn in self.turns if turn[1] in self.items]
            heapq.heapify(self.turns)
        return item

    def next_turn(self) -> tuple[float, int]:
        while self.turns[0][1] not in self.items:
            heapq.heappop(self.turns)
        return self.turns[0]

    def window(self, number: int, cost: Cost, worthwhile: float) -> tuple[int, int]:
        """The slice of `lengths` that runs with item `number`, where a run has this cost."""
        anchor = bisect_left(self.lengths, (self.items[number].length, number))
        choose = self._split if len(self.lengths) <= EXACT else self._grow
        return choose(anchor, cost, worthwhile)

    def _fits(self, cost: Cost, worthwhile: float, texts: int, tokens: int, longest: int) -> bool:
        return texts == 1 or (
            texts <= self.max_texts
            and texts * longest <= self.max_positions
            and cost.tokens(texts, tokens, longest) * worthwhile <= cost.run_tokens
        )

    def _split(self, anchor: int, cost: Cost, worthwhile: float) -> tuple[int, int]:
        """The anchor's part in the split of all lengths into runs that costs least."""
        least = [0.0]  # of the first n lengths
        starts = [0]  # of the last run of that split
        for last in range(1, len(self.lengths) + 1):
            longest = self.lengths[last - 1][0]
            best, start, tokens = float("inf"), last - 1, 0
            for first in range(last - 1, -1, -1):
                tokens += self.lengths[first][0]
                if not self._fits(cost, worthwhile, last - first, tokens, longest):
                    break
                seconds = least[first] + cost.seconds(last - first, tokens, longest)
                if seconds < best:
                    best, start = seconds, first
            least.append(best)
            starts.append(start)
        last = len(self.lengths)
        while starts[last] > anchor:
            last = starts[last]
        return starts[last], last

    def _grow(self, anchor: int, cost: Cost, worthwhile: float) -> tuple[int, int]:
        """From the anchor to either side, by whichever neighbour makes the batch do more a second."""
        lengths = self.lengths
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


class Batcher:
    """Holds items until a device asks. Not thread-safe: its owner keeps it under one lock."""

    def __init__(self, max_batch_tokens: int, max_batch_texts: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_texts = max_batch_texts
        self.tokens = 0  # of all items that wait
        self.interactive_tokens = 0  # of these, what bulk items do not delay
        self._lanes: dict[tuple[Model, Priority], _Lane] = {}
        self._numbers: dict[Item, int] = {}
        self._deadlines: list[tuple[float, int, Item]] = []
        self._next = 0
        self._now = 0.0  # virtual time: the stamp of the last anchor
        self._interactive_at = float("-inf")  # when the last interactive batch left
        self._flows: dict[Flow, float] = {}  # when each flow's last item will have had its share

    def __len__(self) -> int:
        return len(self._numbers)

    def waiting(self, model: Model) -> int:
        """How many items of this model wait."""
        return sum(len(self._lanes[model, priority].items) for priority in WEIGHTS)

    def open(self, model: Model, cost: Cost) -> None:
        """Accept items of this model, whose graph was measured to cost so much."""
        for priority in WEIGHTS:
            self._lanes[model, priority] = _Lane(cost, self.max_batch_tokens, self.max_batch_texts)

    def close(self, model: Model) -> list[Item]:
        """Accept no more items of this model; return those that waited."""
        left = [item for priority in WEIGHTS for item in self._lanes[model, priority].items.values()]
        self.cancel(left)
        for priority in WEIGHTS:
            del self._lanes[model, priority]
        return left

    def add(self, item: Item) -> None:
        """Queue an item; its model must be open."""
        number, self._next = self._next, self._next + 1
        lane = self._lanes[item.model, item.priority]
        flow = (item.tenant, item.priority)
        stamp = max(self._now, self._flows.get(flow, 0.0))
        share = lane.cost.seconds(1, item.length, item.length) - lane.cost.run_seconds
        self._flows[flow] = stamp + share / WEIGHTS[item.priority]
        if len(self._flows) > 64 and len(self._flows) > 2 * len(self._numbers):
            # Flows that have had their share already begin anew like any other.
            self._flows = {key: value for key, value in self._flows.items() if value > self._now}
        lane.add(number, item, stamp)
        self._numbers[item] = number
        self._count(item, item.length)
        if item.deadline is not None:
            heapq.heappush(self._deadlines, (item.deadline, number, item))

    def cancel(self, items: Iterable[Item]) -> None:
        """Drop items that nobody waits for; those that already left are passed over."""
        for item in items:
            if item in self._numbers:
                self._remove(item)

    def postpone(self, item: Item) -> None:
        """An item's deadline has moved, to either side; one that already left is passed over."""
        if item in self._numbers and item.deadline is not None:
            number, self._next = self._next, self._next + 1
            heapq.heappush(self._deadlines, (item.deadline, number, item))

    def pop(self, now: float, costs: Mapping[Model, Cost] | None = None) -> Popped:
        """Take the next batch, and whatever expired by `now`.

        `costs`: of runs on the device that asks, where devices differ.
        """
        expired = tuple(self._expire(now))
        lane = min((lane for lane in self._lanes.values() if lane.items), key=_Lane.next_turn, default=None)
        if lane is None:
            self._flows.clear()  # whoever comes next starts level
            return Popped(None, expired)
        stamp, number = lane.next_turn()
        self._now = max(self._now, stamp)
        anchor = lane.items[number]
        worthwhile = WORTHWHILE
        if anchor.priority == "interactive":
            self._interactive_at = now
        elif now - self._interactive_at < LATELY:
            worthwhile = BESIDE_INTERACTIVE
        first, last = lane.window(number, (costs or {}).get(anchor.model, lane.cost), worthwhile)
        items = tuple(lane.items[each] for _, each in lane.lengths[first:last])
        for item in items:
            self._remove(item)
        return Popped(Batch(anchor.model, items), expired)

    def _expire(self, now: float) -> list[Item]:
        gone = []
        while self._deadlines and self._deadlines[0][0] <= now:
            item = heapq.heappop(self._deadlines)[2]
            # An entry from before the deadline moved is passed over: it has another one.
            if item in self._numbers and item.deadline is not None and item.deadline <= now:
                self._remove(item)
                gone.append(item)
        return gone

    def _count(self, item: Item, tokens: int) -> None:
        self.tokens += tokens
        if item.priority == "interactive":
            self.interactive_tokens += tokens

    def _remove(self, item: Item) -> None:
        self._lanes[item.model, item.priority].remove(self._numbers.pop(item))
        self._count(item, -item.length)
        # Entries of items that left stay in the heap until their deadline; rebuild it before they
        # are most of it, so that a long deadline does not keep the texts of finished calls alive.
        if len(self._deadlines) > 64 and len(self._deadlines) > 2 * len(self._numbers):
            self._deadlines = [
                entry
                for entry in self._deadlines
                if entry[2] in self._numbers and entry[0] == entry[2].deadline
            ]
            heapq.heapify(self._deadlines)
