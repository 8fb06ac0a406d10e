"""Which items run together: a sans-IO policy, with no clock, thread, loop or device of its own.

Batching is by backpressure: nothing waits for a timer. Items gather while devices are busy; when one is
free, `pop` gives it a batch. Whether a free device should leave a few items waiting for others that are about
to come, companions.py says.

*Whose turn it is* follows start-time fair queueing (Goyal, Vin and Cheng, 1996): each item is stamped
with a virtual time, at which its flow (its tenant and priority) would get to it if all flows shared the
devices in proportion to their weights. The item with the least stamp is the batch's anchor. Within a flow
that is first come, first served; between tenants it is fair; interactive items go before bulk ones, and
yet nothing starves: a stamp, once given, is overtaken only by stamps below it.

*What rides along* are the anchor's neighbours in units, by the measured cost of the graph. Few items are
split into the batches that cost least altogether, and the anchor's is taken. Of many, the batch grows from
the anchor to either side as long as it finishes more units a second. It never grows past the point where
the fixed cost of a run is WORTHWHILE of the whole: a larger batch would only make its items wait. The items
of one tenant leave in rounds, which bounds how far they overtake each other (lane.py). While several tenants
wait, only what is due within the next few batches may ride along, which is as much of each as its share:
neighbours out of all that waits would nearly all be of whoever has queued the most. Nothing
bulk rides with what is interactive, and while there is both, bulk batches are short: a run cannot be
interrupted, and whoever arrives meanwhile waits for its end.
"""

import heapq
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import msgspec

from trimtab.kinds import Priority
from trimtab_server.engine.batch import Batch, Item, Model
from trimtab_server.engine.queue.cost import Cost
from trimtab_server.engine.queue.lane import WEIGHTS, Lane

# A batch is large enough when the fixed cost of its run is this share of it.
WORTHWHILE = 0.02
# The same for a bulk batch while interactive work ran less than so many seconds ago.
BESIDE_INTERACTIVE = 0.1
LATELY = 1.0
# Each call looks at all flows, and callers can make up any number of tenants: once so many flows wait,
# further tenants count as one, except those that are known.
MOST_FLOWS = 256
CROWD = ""

Flow: TypeAlias = tuple[str, Priority]


class Popped(msgspec.Struct, frozen=True):
    """What `pop` found: a batch to run, and items whose deadline passed in the queue."""

    batch: Batch | None
    expired: tuple[Item, ...]


@dataclass(slots=True)
class _FlowBacklog:
    """What one flow has waiting."""

    items: int = 0
    seconds: float = 0.0  # of computing


class Batcher:
    """Holds items until a device asks. Not thread-safe: the engine's lock guards it.

    `weight`: a tenant's share of the devices relative to others; `known`: the tenants that are configured.
    """

    def __init__(
        self,
        max_batch_units: int,
        max_batch_items: int,
        weight: Callable[[str], float] = lambda tenant: 1.0,
        known: Collection[str] = (),
    ) -> None:
        self.max_batch_units = max_batch_units
        self.max_batch_items = max_batch_items
        self.units = 0  # of all items that wait
        self._weight = weight
        self._known = known
        self._lanes: dict[tuple[Model, Priority], Lane] = {}
        self._numbers: dict[Item, int] = {}
        self._deadlines: list[tuple[float, int, Item]] = []
        self._next = 0
        self._now = 0.0  # virtual time: the stamp of the last anchor
        self._interactive_at = float("-inf")  # when the last interactive batch left
        self._flows: dict[Flow, float] = {}  # virtual time when each flow will have had its share
        self._backlog: dict[Flow, _FlowBacklog] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def waiting(self, model: Model) -> int:
        """How many items of this model wait."""
        return sum(len(self._lanes[model, priority].items) for priority in WEIGHTS)

    def open(self, model: Model, cost: Cost) -> None:
        """Accept items of this model, whose runs have this cost."""
        for priority in WEIGHTS:
            self._lanes[model, priority] = Lane(
                cost, self.max_batch_units, self.max_batch_items, self._weight
            )

    def close(self, model: Model) -> list[Item]:
        """Accept no more items of this model; return those that waited."""
        left = [item for priority in WEIGHTS for item in self._lanes[model, priority].items.values()]
        self.cancel(left)
        for priority in WEIGHTS:
            del self._lanes[model, priority]
        return left

    def tenant(self, name: str) -> str:
        """The tenant that an item of this tenant counts for, if it is queued now."""
        backlog = self._backlog
        if len(backlog) < MOST_FLOWS or name in self._known:
            return name
        return name if any((name, each) in backlog for each in WEIGHTS) else CROWD

    def ahead(self, tenant: str, priority: Priority) -> float:
        """Seconds of computing ahead of an item that this flow would queue now: all that the flow has
        waiting, and what the others get meanwhile."""
        flow = (self.tenant(tenant), priority)
        span = max(0.0, self._flows.get(flow, 0.0) - self._now)
        return sum(
            waiting.seconds if each == flow else min(waiting.seconds, span * self._share(each))
            for each, waiting in self._backlog.items()
        )

    def all_ahead(self, priority: Priority) -> dict[str, float]:
        """The same for every flow of this priority that would have to wait."""
        backlog = sorted(
            (waiting.seconds / share, waiting.seconds, share)
            for flow, waiting in self._backlog.items()
            for share in (self._share(flow),)
        )
        # In the order in which the flows run empty: at each one's span, those before it are done.
        spans = [span for span, _, _ in backlog]
        done = list(accumulate((seconds for _, seconds, _ in backlog), initial=0.0))
        shares = list(accumulate((share for _, _, share in reversed(backlog)), initial=0.0))[::-1]
        found = {}
        for flow in self._flows.keys() | self._backlog.keys():
            if flow[1] != priority:
                continue
            span = max(0.0, self._flows.get(flow, 0.0) - self._now)
            first = bisect_left(spans, span)
            seconds = done[first] + span * shares[first]
            own = self._backlog.get(flow)
            if own is not None:  # it waits for all of its own
                seconds += own.seconds - min(own.seconds, span * self._share(flow))
            if seconds > 0.0:
                found[flow[0]] = seconds
        if self.crowded:  # unlisted flows count as the crowd, except these
            found.update((name, 0.0) for name in self._known if name not in found)
        return found

    @property
    def crowded(self) -> bool:
        """Whether so many flows wait that further tenants count as one."""
        return len(self._backlog) >= MOST_FLOWS

    def waiting_seconds(self, priority: Priority) -> float:
        """Seconds of computing that wait, of all tenants."""
        return sum(waiting.seconds for flow, waiting in self._backlog.items() if flow[1] == priority)

    def cost(self, model: Model) -> Cost:
        """The cost of an open model's runs."""
        return self._lanes[model, "interactive"].cost

    def add(self, item: Item) -> None:
        """Queue an item; its model must be open."""
        number, self._next = self._next, self._next + 1
        lane = self._lanes[item.model, item.priority]
        flow = (item.tenant, item.priority)
        stamp = max(self._now, self._flows.get(flow, 0.0))
        seconds = lane.seconds(item)
        self._flows[flow] = stamp + seconds / self._share(flow)
        if len(self._flows) > 64 and len(self._flows) > 2 * len(self._numbers):
            # Flows that have had their share are forgotten: they begin level with the others.
            self._flows = {key: value for key, value in self._flows.items() if value > self._now}
        lane.add(number, item, stamp)
        self._numbers[item] = number
        self.units += item.payload.units
        waiting = self._backlog.get(flow)
        if waiting is None:
            waiting = self._backlog[flow] = _FlowBacklog()
        waiting.items += 1
        waiting.seconds += seconds
        if item.deadline is not None:
            heapq.heappush(self._deadlines, (item.deadline, number, item))

    def cancel(self, items: Iterable[Item]) -> None:
        """Drop items that nobody waits for; those that have already left are ignored."""
        for item in items:
            if item in self._numbers:
                self._remove(item)

    def postpone(self, item: Item) -> None:
        """An item's deadline has moved, either way; an item that has already left is ignored."""
        if item in self._numbers and item.deadline is not None:
            number, self._next = self._next, self._next + 1
            heapq.heappush(self._deadlines, (item.deadline, number, item))

    def pop(self, now: float, costs: Mapping[Model, Cost] | None = None) -> Popped:
        """Take the next batch, and the items that expired by `now`.

        `costs`: of runs on the device that asks, if devices differ.
        """
        expired = tuple(self._expire(now)) if self._deadlines and self._deadlines[0][0] <= now else ()
        if not self._numbers:
            self._flows.clear()  # the next flows start level
            return Popped(None, expired)
        waiting = [lane for lane in self._lanes.values() if lane.items]
        lane = waiting[0] if len(waiting) == 1 else min(waiting, key=Lane.next_turn)
        stamp, number = lane.next_turn()
        self._now = max(self._now, stamp)
        anchor = lane.items[number]
        worthwhile = WORTHWHILE
        if anchor.priority == "interactive":
            self._interactive_at = now
        elif now - self._interactive_at < LATELY:
            worthwhile = BESIDE_INTERACTIVE
        items = lane.batch(number, stamp, (costs or {}).get(anchor.model, lane.cost), worthwhile)
        for item in items:
            self._remove(item)
        return Popped(Batch(anchor.model, items), expired)

    def _expire(self, now: float) -> list[Item]:
        gone = []
        while self._deadlines and self._deadlines[0][0] <= now:
            item = heapq.heappop(self._deadlines)[2]
            # Skip an entry from before the deadline moved: the item has another one.
            if item in self._numbers and item.deadline is not None and item.deadline <= now:
                self._remove(item)
                gone.append(item)
        return gone

    def _share(self, flow: Flow) -> float:
        tenant, priority = flow
        return WEIGHTS[priority] * self._weight(tenant)

    def _remove(self, item: Item) -> None:
        lane, flow = self._lanes[item.model, item.priority], (item.tenant, item.priority)
        lane.remove(self._numbers.pop(item))
        self.units -= item.payload.units
        waiting = self._backlog[flow]
        waiting.items -= 1
        waiting.seconds -= lane.seconds(item)
        if not waiting.items:
            del self._backlog[flow]
        # Entries of items that left stay in the heap until their deadline; rebuild it before they
        # are most of it, so that a long deadline does not keep the items of finished calls alive.
        if len(self._deadlines) > 64 and len(self._deadlines) > 2 * len(self._numbers):
            self._deadlines = [
                entry
                for entry in self._deadlines
                if entry[2] in self._numbers and entry[0] == entry[2].deadline
            ]
            heapq.heapify(self._deadlines)
