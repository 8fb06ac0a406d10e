"""The sans-IO batcher, under a fake clock: whatever comes in whatever order, its promises hold."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.server.models_made import ALONE
from tests.server.models_made import model as made
from trimtab.kinds import Priority
from trimtab_server.engine.batch import Batch, Item, Model, Payload
from trimtab_server.engine.port import ModelPace, Pressure
from trimtab_server.engine.queue.batcher import CROWD, MOST_FLOWS, Batcher
from trimtab_server.engine.queue.cost import Cost
from trimtab_server.engine.queue.lane import AHEAD, EXACT, POOR, WEIGHTS

MAX_TOKENS, MAX_TEXTS = 600, 12
COSTS = st.builds(
    Cost,
    st.floats(0.0001, 0.1),
    st.floats(0.0001, 0.001),
    st.floats(0, 0.001),
    st.floats(0, 0.00001),
)


def model(name: str) -> Model:
    return made(name)


def item(
    of: Model,
    length: int,
    deadline: float | None = None,
    tenant: str = "",
    priority: Priority = "interactive",
) -> Item:
    return Item(of, Payload({}, length, b""), ALONE, deadline, tenant, priority)


def filled(cost: Cost, lengths: list[int], max_texts: int = 256) -> tuple[Batcher, list[Item]]:
    batcher, one = Batcher(16384, max_texts), model("a")
    batcher.open(one, cost)
    items = [item(one, length) for length in lengths]
    for each in items:
        batcher.add(each)
    return batcher, items


def pop(batcher: Batcher, now: float = 0.0) -> Batch:
    batch = batcher.pop(now).batch
    assert batch is not None
    return batch


class Machine(RuleBasedStateMachine):
    """Adds, cancels, pops and lets time pass, against a plain list of what ought to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = Batcher(MAX_TOKENS, MAX_TEXTS)
        self.models = [model("a"), model("b")]
        # One graph that is dear to start and pays for padding, one that is almost free to start.
        self.batcher.open(self.models[0], Cost(0.010, 0.001, 0.001, 0.00001))
        self.batcher.open(self.models[1], Cost(0.0001, 0.001))
        self.now = 0.0
        self.waiting: list[Item] = []

    @rule(
        which=st.integers(0, 1),
        length=st.integers(1, 700),
        patience=st.none() | st.floats(0, 5),
        tenant=st.sampled_from("xyz"),
        priority=st.sampled_from(sorted(WEIGHTS)),
    )
    def add(self, which: int, length: int, patience: float | None, tenant: str, priority: Priority) -> None:
        deadline = None if patience is None else self.now + patience
        new = item(self.models[which], length, deadline, tenant, priority)
        self.batcher.add(new)
        self.waiting.append(new)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(self.waiting), max_size=3))
        self.batcher.cancel(gone)
        self.batcher.cancel(gone)  # twice is as good as once
        self.waiting = [each for each in self.waiting if each not in gone]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), patience=st.none() | st.floats(-1, 5))
    def postpone(self, data: st.DataObject, patience: float | None) -> None:
        moved = data.draw(st.sampled_from(self.waiting))
        moved.deadline = None if patience is None else self.now + patience
        self.batcher.postpone(moved)
        self.batcher.postpone(moved)

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def pop(self) -> None:
        late = {each for each in self.waiting if each.deadline is not None and each.deadline <= self.now}
        popped = self.batcher.pop(self.now)
        assert set(popped.expired) == late
        self.waiting = [each for each in self.waiting if each not in late]
        if not self.waiting:
            assert popped.batch is None
            return
        batch = popped.batch
        assert batch is not None, "something always progresses"
        assert set(batch.items) <= set(self.waiting) and len(set(batch.items)) == len(batch.items)
        assert all(each.model is batch.model for each in batch.items)
        assert len(batch.items) <= MAX_TEXTS
        assert len(batch.items) * batch.longest <= MAX_TOKENS or len(batch.items) == 1
        heads = {}  # the first of each flow: one of them goes
        for each in self.waiting:
            heads.setdefault((each.tenant, each.priority), each)
        assert set(heads.values()) & set(batch.items), "it is always the turn of a flow's oldest"
        self.waiting = [each for each in self.waiting if each not in batch.items]

    @invariant()
    def counts(self) -> None:
        assert len(self.batcher) == len(self.waiting)
        assert self.batcher.units == sum(each.units for each in self.waiting)


TestBatcher = Machine.TestCase
TestBatcher.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(COSTS, st.lists(st.integers(1, 256), min_size=1, max_size=9))
def test_a_few_items_are_split_as_cheaply_as_any_split_at_once(cost: Cost, lengths: list[int]) -> None:
    """Against every split of the sorted lengths into runs."""
    batcher, _ = filled(cost, lengths)
    taken: list[int] = []
    seconds = 0.0
    limit = cost.run_units / 0.02

    def price(part: list[int]) -> float:
        shape = (len(part), sum(part), max(part))
        return cost.seconds(*shape) if len(part) == 1 or cost.units(*shape) <= limit else float("inf")

    while len(batcher):
        batch = pop(batcher)
        part = [each.units for each in batch.items]
        taken += part
        seconds += price(part)
    assert sorted(taken) == sorted(lengths)
    ordered = sorted(lengths)
    best = float("inf")
    for cuts in range(2 ** (len(ordered) - 1)):
        edges = [0, *(at for at in range(1, len(ordered)) if cuts >> (at - 1) & 1), len(ordered)]
        best = min(best, sum(price(ordered[start:end]) for start, end in pairwise(edges)))
    # What is left after a batch is split anew, and may then go together although it did not lie together.
    assert seconds <= best * (1 + 1e-9)


@settings(deadline=None)
@given(COSTS, st.integers(0, 2**32 - 1))
def test_of_many_items_a_batch_does_at_least_as_much_a_second_as_its_anchor_alone(
    cost: Cost, seed: int
) -> None:
    lengths = [int(length) for length in np.random.default_rng(seed).integers(1, 256, EXACT * 4)]
    batcher, items = filled(cost, lengths)
    batch = pop(batcher)
    assert items[0] in batch.items
    alone = lengths[0] / cost.seconds(1, lengths[0], lengths[0])
    together = batch.units / cost.seconds(len(batch.items), batch.units, batch.longest)
    assert together >= alone * (1 - 1e-9)


def test_padding_that_costs_keeps_long_and_short_apart() -> None:
    lengths = [8, 200, 9, 204, 8]
    batcher, _ = filled(Cost(0.002, 0.0002, 0.0002), lengths)  # a run costs as much as ten tokens
    parts = [[each.units for each in pop(batcher).items] for _ in range(2)]
    assert parts == [[8, 8, 9], [200, 204]]


def test_padding_that_costs_nothing_lets_them_ride_together() -> None:
    batcher, _ = filled(Cost(0.002, 0.0002), [8, 200, 9, 210, 8])
    assert len(pop(batcher).items) == 5


def test_a_batch_is_as_large_as_the_device_that_takes_it_makes_worth_while() -> None:
    """Of two devices with different costs, the one that is slow to start takes more at once."""
    batcher, items = filled(Cost(0.0002, 0.0002), [20] * 200)
    small = pop(batcher)
    popped = batcher.pop(0.0, {items[0].model: Cost(0.002, 0.0002)}).batch
    assert popped is not None and len(popped.items) >= 5 * len(small.items)


def test_one_flow_is_first_come_first_served() -> None:
    """An item with k older ones before it is in one of the next k + 1 batches."""
    lengths = [int(length) for length in np.random.default_rng(0).integers(1, 256, 300)]
    batcher, items = filled(Cost(0.002, 0.0002, 0.0002), lengths)
    position = {each: number for number, each in enumerate(items)}
    batches = 0
    while len(batcher):
        for each in pop(batcher).items:
            assert position[each] >= batches
        batches += 1
        later = item(items[0].model, 100)
        if batches < 100:
            batcher.add(later)
            position[later] = len(position)


def poor(cost: Cost, lengths: list[int]) -> bool:
    """Whether the fixed cost is much of what the first batch of these costs."""
    batch = pop(filled(cost, lengths)[0])
    return cost.run_seconds > POOR * cost.seconds(len(batch.items), batch.units, batch.longest)


@settings(deadline=None)
@given(COSTS, st.lists(st.integers(1, 256), min_size=1, max_size=2 * EXACT), st.integers(0, 2**32 - 1))
def test_nothing_of_one_tenant_is_overtaken_by_more_than_a_round(
    cost: Cost, lengths: list[int], seed: int
) -> None:
    """Nothing younger than a round rides along before the round has left, unless its last batches would be
    poor."""
    rng = np.random.default_rng(seed)
    batcher, waiting = filled(cost, lengths)
    number = {each: place for place, each in enumerate(waiting)}
    youngest = -1
    while waiting:
        now = [each.units for each in waiting if number[each] <= youngest]
        batch = pop(batcher)
        if max(number[each] for each in batch.items) > youngest:
            assert not now or (len(now) <= EXACT and poor(cost, now))
        if not now or (len(now) <= EXACT and len(now) < len(waiting) and poor(cost, now)):
            youngest = number[waiting[: max(EXACT, (len(waiting) + 1) // 2)][-1]]
        assert max(number[each] for each in batch.items) <= youngest
        waiting = [each for each in waiting if each not in batch.items]
        if len(number) < 4 * EXACT:
            for length in rng.integers(1, 256, rng.integers(0, 3)):
                late = item(batch.model, int(length))
                batcher.add(late)
                number[late] = len(number)
                waiting.append(late)


def test_texts_that_hardly_differ_leave_in_the_order_in_which_they_came() -> None:
    """By rounds: with as many callers as fill two, none waits much longer than another."""
    batcher, items = filled(Cost(0.002, 0.00014, 0.000035), [10 + each * 7 % 5 for each in range(2 * EXACT)])
    came, left, waited = dict.fromkeys(items, 0), 0, []
    for _ in range(100):
        for each in pop(batcher).items:
            waited.append(left - came.pop(each))
            left += 1
            again = item(each.model, each.units)
            batcher.add(again)
            came[again] = left
    assert max(waited[-EXACT:]) < 3 * EXACT


def served(batcher: Batcher, tokens: int) -> dict[tuple[str, str], int]:
    """Tokens that each flow gets while `tokens` are computed."""
    shares: dict[tuple[str, str], int] = {}
    while sum(shares.values()) < tokens:
        for each in pop(batcher).items:
            flow = (each.tenant, each.priority)
            shares[flow] = shares.get(flow, 0) + each.units
    return shares


def test_a_tenant_with_much_does_not_keep_out_one_with_little() -> None:
    batcher, one = Batcher(16384, 4), model("a")
    batcher.open(one, Cost(0.002, 0.001, 0.001))
    for number in range(1000):
        batcher.add(item(one, 10 + number % 7, tenant="loud"))
    for number in range(100):
        batcher.add(item(one, 30 + number % 7, tenant="quiet"))
    shares = served(batcher, 4000)
    assert shares["quiet", "interactive"] == pytest.approx(2000, rel=0.1)


def test_riders_are_of_each_tenant_by_its_share() -> None:
    """Of what waits nearly all is A's; yet B, who has a little, gets half of every batch until it is done."""
    for weight, most in ((1.0, 3), (4.0, 2)):
        batcher, one = Batcher(16384, 20, lambda tenant: weight if tenant == "b" else 1.0), model("a")  # noqa: B023
        batcher.open(one, Cost(0.01, 0.001))
        for each in range(400):
            batcher.add(item(one, 5 + each % 7, tenant="a"))
        assert batcher.ahead("b", "interactive") == 0
        for each in range(20):
            batcher.add(item(one, 5 + each % 7, tenant="b"))
        left, pops = 20, 0
        while left:
            left -= sum(each.tenant == "b" for each in pop(batcher).items)
            pops += 1
        assert pops <= most + AHEAD


def test_tenants_that_callers_make_up_are_one_beyond_so_many() -> None:
    """Each flow is looked at for each call: thousands of them would hold up everybody."""
    batcher, one = Batcher(16384, 20, known={"known"}), model("a")
    batcher.open(one, Cost(0.01, 0.001))
    for number in range(10 * MOST_FLOWS):
        batcher.add(item(one, 10, tenant=batcher.tenant(f"made-up-{number}")))
    assert len(batcher._backlog) == MOST_FLOWS + 1
    assert batcher.tenant("made-up-7") == "made-up-7" and batcher.tenant("another") == CROWD
    assert batcher.ahead("another", "interactive") == batcher.ahead(CROWD, "interactive") > 0
    assert batcher.tenant("known") == "known" and batcher.ahead("known", "interactive") == 0
    while batcher.units:
        pop(batcher)
    assert batcher.tenant("another") == "another"


def test_what_is_ahead_is_what_a_flow_has_waiting_and_what_others_get_meanwhile() -> None:
    batcher, one = Batcher(16384, 20, lambda tenant: 3.0 if tenant == "b" else 1.0), model("a")
    batcher.open(one, Cost(0.01, 0.001))
    for _ in range(100):
        batcher.add(item(one, 10, tenant="a"))
    assert batcher.ahead("a", "interactive") == pytest.approx(1.0)
    assert batcher.ahead("b", "interactive") == 0
    for _ in range(30):
        batcher.add(item(one, 10, tenant="b"))
    assert batcher.ahead("b", "interactive") == pytest.approx(0.3 + 0.1)  # a third for A beside it
    assert batcher.ahead("a", "interactive") == pytest.approx(1.0 + 0.3)
    assert batcher.ahead("c", "bulk") == 0
    while batcher.units:
        pop(batcher)
    assert batcher.ahead("a", "interactive") == 0


def told(batcher: Batcher, flow: str, priority: Priority) -> float:
    """What a snapshot tells of a flow, where a second of computing takes one."""
    ahead = {priority: batcher.all_ahead(priority)}
    crowd = CROWD if batcher.crowded else None
    return Pressure(paces={1: ModelPace(1.0, 0.0)}, ahead=ahead, crowd=crowd).queue_seconds(1, flow, priority)


@given(
    queued=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(list(WEIGHTS)), st.integers(1, 30)), max_size=80
    ),
    pops=st.integers(0, 5),
)
def test_of_all_flows_at_once_the_same_is_ahead_as_of_each(
    queued: list[tuple[str, Priority, int]], pops: int
) -> None:
    weights = {"a": 0.5, "b": 3.0}
    batcher, one = Batcher(512, 8, lambda tenant: weights.get(tenant, 1.0)), model("a")
    batcher.open(one, Cost(0.01, 0.001))
    for tenant, priority, length in queued:
        batcher.add(item(one, length, tenant=tenant, priority=priority))
    for _ in range(pops):
        batcher.pop(0.0)
    for priority in list(WEIGHTS):
        for flow in "abcdefg":
            assert told(batcher, flow, priority) == pytest.approx(batcher.ahead(flow, priority), abs=1e-9)


def test_flows_that_are_one_are_told_as_one() -> None:
    batcher, one = Batcher(16384, 20, known={"known"}), model("a")
    batcher.open(one, Cost(0.01, 0.001))
    for number in range(2 * MOST_FLOWS):
        batcher.add(item(one, 10, tenant=batcher.tenant(f"made-up-{number}")))
    for flow in ("another", CROWD, "made-up-7", "known"):
        expected = batcher.ahead(flow, "interactive")
        assert told(batcher, flow, "interactive") == pytest.approx(expected)
    assert told(batcher, "another", "interactive") > 0 == told(batcher, "known", "interactive")


def test_interactive_work_goes_before_bulk_work_and_bulk_work_goes_on() -> None:
    batcher, one = Batcher(16384, 1), model("a")
    batcher.open(one, Cost(0.002, 0.001, 0.001))
    for _ in range(1000):
        batcher.add(item(one, 20, priority="bulk"))
    for _ in range(1000):
        batcher.add(item(one, 20))
    shares = served(batcher, 20 * 340)
    assert shares["", "bulk"] == pytest.approx(20 * 20, rel=0.1)


def test_what_is_bulk_does_not_ride_with_what_is_interactive() -> None:
    batcher, one = Batcher(16384, 256), model("a")
    batcher.open(one, Cost(0.01, 0.001))
    for priority in ("bulk", "interactive", "bulk", "interactive"):
        batcher.add(item(one, 10, priority=priority))
    for _ in range(2):
        batch = pop(batcher)
        assert len(batch.items) == 2
        assert len({each.priority for each in batch.items}) == 1


def test_bulk_batches_are_short_while_there_is_interactive_work() -> None:
    batcher, one = Batcher(16384, 256), model("a")
    batcher.open(one, Cost(0.01, 0.001))
    for _ in range(200):
        batcher.add(item(one, 10, priority="bulk"))
    before = pop(batcher, now=0.0)
    batcher.add(item(one, 10))
    assert pop(batcher, now=1.0).items[0].priority == "interactive"
    beside, after = pop(batcher, now=1.5), pop(batcher, now=2.5)
    assert beside.items[0].priority == "bulk"
    assert len(beside.items) < len(before.items) / 4 <= len(after.items)


def test_a_flow_that_was_idle_saves_up_no_claim() -> None:
    """Nor does it pay for what it had while nobody else wanted anything."""
    batcher, one = Batcher(16384, 1), model("a")
    batcher.open(one, Cost(0.002, 0.001))
    for _ in range(50):
        batcher.add(item(one, 100, tenant="early"))
    served(batcher, 100 * 40)
    for _ in range(50):
        batcher.add(item(one, 100, tenant="late"))
    shares = served(batcher, 100 * 20)
    assert shares["early", "interactive"] == pytest.approx(1000, abs=100)


def test_closing_a_model_hands_back_what_waits() -> None:
    one, other = model("a"), model("b")
    batcher = Batcher(100, 10)
    batcher.open(one, Cost(1, 1))
    batcher.open(other, Cost(1, 1))
    items = [item(one, 3), item(other, 3)]
    for each in items:
        batcher.add(each)
    assert batcher.close(one) == [items[0]]
    assert len(batcher) == 1
    assert pop(batcher).items == (items[1],)
