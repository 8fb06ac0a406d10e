"""Which texts run together: a sans-IO policy, with no clock, thread, loop or device of its own.

Batching is by backpressure: nothing waits for a timer. Items gather while devices are busy; when one
is free, `pop` gives it the best batch there is:

* It holds the item that has waited longest, so that none is overtaken for ever: an item with k older
  ones before it is in one of the next k + 1 batches.
* Beside it ride its nearest neighbours in length, as many as make the batch's *yield* greatest: real
  tokens over (tokens computed + the cost of a run, in tokens). Padding and the fixed cost of a run
  are weighed by one measure, taken from the graph's own warm-up.
* It grows no further than the point where a run's fixed cost is WORTHWHILE of the whole, since a
  larger batch would only make its items wait.
"""

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass

from trimtab_server.batch import Batch, Cost, Item, Model

# A batch is large enough when the fixed cost of its run is this share of it.
WORTHWHILE = 0.02


@dataclass(frozen=True, slots=True)
class Popped:
    """What `pop` found: a batch to run, and items whose deadline passed before they could be."""

    batch: Batch | None
    expired: tuple[Item, ...]


class _Lane:
    """The queue of one model, in two orders: by arrival and by length."""

    def __init__(self, overhead: float, budget: int) -> None:
        self.overhead = overhead  # the fixed cost of a run, in tokens
        self.budget = budget  # padded tokens of a batch
        self.arrivals: OrderedDict[int, Item] = OrderedDict()
        self.lengths: list[tuple[int, int]] = []  # (length, sequence), sorted

    def add(self, sequence: int, item: Item) -> None:
        self.arrivals[sequence] = item
        insort(self.lengths, (item.length, sequence))

    def remove(self, sequence: int) -> Item:
        item = self.arrivals.pop(sequence)
        del self.lengths[bisect_left(self.lengths, (item.length, sequence))]
        return item

    def oldest(self) -> int:
        return next(iter(self.arrivals))


class Batcher:
    """Holds items until a device asks. Not thread-safe: its owner keeps it under one lock."""

    def __init__(self, max_batch_tokens: int, max_batch_texts: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_texts = max_batch_texts
        self.tokens = 0  # of all items that wait
        self._lanes: dict[Model, _Lane] = {}
        self._sequences: dict[Item, int] = {}
        self._deadlines: list[tuple[float, int, Item]] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def waiting(self, model: Model) -> int:
        """How many items of this model wait."""
        return len(self._lanes[model].arrivals)

    def open(self, model: Model, cost: Cost) -> None:
        """Accept items of this model, whose graph was measured to cost so much."""
        overhead = cost.run_seconds / cost.token_seconds
        budget = min(self.max_batch_tokens, max(1, round(overhead / WORTHWHILE)))
        self._lanes[model] = _Lane(overhead, budget)

    def close(self, model: Model) -> list[Item]:
        """Accept no more items of this model; return those that waited."""
        left = list(self._lanes[model].arrivals.values())
        self.cancel(left)
        del self._lanes[model]
        return left

    def add(self, item: Item) -> None:
        """Queue an item; its model must be open."""
        sequence, self._next = self._next, self._next + 1
        self._lanes[item.model].add(sequence, item)
        self._sequences[item] = sequence
        self.tokens += item.length
        if item.deadline is not None:
            heapq.heappush(self._deadlines, (item.deadline, sequence, item))

    def cancel(self, items: list[Item]) -> None:
        """Drop items that nobody waits for; those that already left are passed over."""
        for item in items:
            if item in self._sequences:
                self._remove(item)

    def pop(self, now: float) -> Popped:
        """Take the best batch there is, and whatever expired by `now`."""
        expired = tuple(self._expire(now))
        lane = min((lane for lane in self._lanes.values() if lane.arrivals), key=_Lane.oldest, default=None)
        if lane is None:
            return Popped(None, expired)
        first, last = self._window(lane)
        items = tuple(lane.arrivals[sequence] for _, sequence in lane.lengths[first:last])
        for item in items:
            self._remove(item)
        return Popped(Batch(items[0].model, items), expired)

    def _window(self, lane: _Lane) -> tuple[int, int]:
        """The slice of `lane.lengths` around the oldest item that has the greatest yield."""
        lengths = lane.lengths
        oldest = lane.oldest()
        anchor = bisect_left(lengths, (lane.arrivals[oldest].length, oldest))
        best, window = 0.0, (anchor, anchor + 1)
        rising = 0  # tokens of the items from the anchor to the longest of the window
        for last in range(anchor, len(lengths)):
            width = lengths[last][0]
            rising += width
            room = min(self.max_batch_texts, max(1, lane.budget // width))
            if last - anchor >= room:
                break
            # Downwards each next item is shorter: it gains less and costs the same, so the yield
            # rises up to one point and falls from there.
            first, real = anchor, rising
            value = real / (lane.overhead + (last - first + 1) * width)
            while first > 0 and last - first + 2 <= room:
                more = real + lengths[first - 1][0]
                higher = more / (lane.overhead + (last - first + 2) * width)
                if higher < value:
                    break
                first, real, value = first - 1, more, higher
            if value > best:
                best, window = value, (first, last + 1)
        return window

    def _expire(self, now: float) -> list[Item]:
        gone = []
        while self._deadlines and self._deadlines[0][0] <= now:
            item = heapq.heappop(self._deadlines)[2]
            if item in self._sequences:
                self._remove(item)
                gone.append(item)
        return gone

    def _remove(self, item: Item) -> None:
        self._lanes[item.model].remove(self._sequences.pop(item))
        self.tokens -= item.length
        # Entries of items that left stay in the heap until their deadline; rebuild it before they
        # are most of it, so that a long deadline does not keep the texts of finished calls alive.
        if len(self._deadlines) > 64 and len(self._deadlines) > 2 * len(self._sequences):
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self._sequences]
            heapq.heapify(self._deadlines)
