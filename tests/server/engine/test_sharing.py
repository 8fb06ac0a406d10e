"""The sans-IO sharing, against a plain model of who waits for what, and of what is remembered."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.server.models_made import ALONE, model, payload
from trimtab.kinds import Priority
from trimtab.values.column import Column, Columns
from trimtab_server.engine.batch import Item, Payload
from trimtab_server.engine.queue.sharing import COLUMN_BYTES, ENTRY_BYTES, Sharing


@dataclass(eq=False)
class Waiter:
    deadline: float | None = None


def ids(*numbers: int) -> Payload:
    return payload(np.array(numbers, np.int32))


def result(vector: np.ndarray) -> Columns:
    return {"dense": Column(vector[None])}


def ask(shared: Sharing[Waiter], waiter: Waiter, row: int, key: Any, priority: Priority) -> tuple[Item, bool]:
    """What the engine does with a text that is not remembered; the item, and whether it is new."""
    item = shared.flying(key, priority)
    if item is not None:
        deadline = item.deadline
        assert shared.join(waiter, row, item) is (item.deadline != deadline)
        return item, False
    return shared.begin(waiter, row, key, Payload({}, 1, key[1]), "", priority), True


def join(shared: Sharing[Waiter], key: Any) -> tuple[Item, bool]:
    return ask(shared, Waiter(), 0, key, "interactive")


def sharing(*, single_flight: bool = True, across_tenants: bool = False, cache: int = 0) -> Sharing[Waiter]:
    return Sharing(single_flight=single_flight, across_tenants=across_tenants, cache_bytes=cache)


@pytest.mark.parametrize("across_tenants", [False, True])
def test_tenants_share_where_they_may(across_tenants: bool) -> None:
    one = model()
    shared = sharing(across_tenants=across_tenants, cache=10_000)
    keys = [shared.key(one, ids(1, 2), ALONE, tenant) for tenant in ("x", "y")]
    (item, new), (_, other) = join(shared, keys[0]), join(shared, keys[1])
    assert new and other is not across_tenants
    shared.finish(item, result(np.ones(4, np.float32)))
    assert (shared.recall(keys[1]) is not None) is across_tenants


def test_what_differs_is_not_shared() -> None:
    one, shared = model(), sharing(cache=10_000)
    item, _ = join(shared, shared.key(one, ids(1, 2), ALONE, ""))
    shared.finish(item, result(np.ones(4, np.float32)))
    others = [(one, ids(1)), (one, ids(1, 3)), (one, ids(2, 1)), (one, ids(1, 2, 0)), (model(), ids(1, 2))]
    for of, numbers in others:
        key = shared.key(of, numbers, ALONE, "")
        assert shared.recall(key) is None and join(shared, key)[1]
    assert shared.recall(shared.key(one, ids(1, 2), ALONE, "")) is not None


def test_without_single_flight_each_text_is_computed() -> None:
    one, shared = model(), sharing(single_flight=False)
    key = shared.key(one, ids(1), ALONE, "")
    assert all(join(shared, key)[1] for _ in range(3))


def test_a_remembered_vector_is_a_copy() -> None:
    one, shared = model(), sharing(cache=10_000)
    key = shared.key(one, ids(1), ALONE, "")
    batch = np.zeros((1000, 4), np.float32)
    shared.finish(join(shared, key)[0], {"dense": Column(batch)}, 7)
    batch[7] = 5
    found = shared.recall(key)
    assert found is not None
    values = found["dense"].values
    assert values.shape == (1, 4) and not values.any() and values.base is None
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_a_vector_larger_than_the_cache_is_not_remembered() -> None:
    one, shared = model(), sharing(cache=ENTRY_BYTES)
    key = shared.key(one, ids(1), ALONE, "")
    shared.finish(join(shared, key)[0], result(np.ones(4, np.float32)))
    assert shared.recall(key) is None and shared.bytes == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_vector_is_not_remembered(bad: float) -> None:
    """It fails its request, and must not fail those that come after."""
    one, shared = model(), sharing(cache=10_000)
    key = shared.key(one, ids(1), ALONE, "")
    vector = np.ones(4, np.float32)
    vector[2] = bad
    shared.finish(join(shared, key)[0], result(vector))
    assert shared.recall(key) is None and shared.bytes == 0


CACHE = 4 * ENTRY_BYTES


def size(number: int) -> int:
    """What a text takes in the cache."""
    return ENTRY_BYTES + 4 * (number * 30 + 1) + COLUMN_BYTES + 16


class Machine(RuleBasedStateMachine):
    """Joins, leaves, finishes and unloads, against dictionaries that say what ought to be."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = sharing(cache=CACHE)
        self.models = [model("a"), model("b")]
        self.flying: dict[tuple[int, int, Priority], Item] = {}
        self.waiters: dict[Item, dict[Waiter, list[int]]] = {}
        self.remembered: dict[tuple[int, int], float] = {}  # the least lately used first
        self.rows = 0

    def text(self, number: int) -> Payload:
        return payload(np.full(number * 30 + 1, number, np.int32))

    @rule(
        which=st.integers(0, 1),
        number=st.integers(0, 5),
        deadline=st.none() | st.floats(0, 9),
        priority=st.sampled_from(["interactive", "bulk"]),
        again=st.booleans(),
    )
    def ask(self, which: int, number: int, deadline: float | None, priority: Priority, again: bool) -> None:
        text = self.text(number)
        key = self.shared.key(self.models[which], text, ALONE, "")
        vector = self.shared.recall(key)
        if (which, number) in self.remembered:
            value = self.remembered.pop((which, number))
            self.remembered[which, number] = value
            assert vector is not None and (vector["dense"].values == value).all()
            return
        assert vector is None
        here = self.flying.get((which, number, priority))
        waiter = next(iter(self.waiters[here])) if here and again else Waiter(deadline)
        item, new = ask(self.shared, waiter, self.rows, key, priority)
        assert new is (here is None) and (here is None or item is here)
        self.flying[which, number, priority] = item
        self.waiters.setdefault(item, {}).setdefault(waiter, []).append(self.rows)
        self.rows += 1

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.flying)))
        item = self.flying[place]
        waiter = data.draw(st.sampled_from(list(self.waiters[item])))
        del self.waiters[item][waiter]
        assert self.shared.leave(waiter, item) is not bool(self.waiters[item])
        self.shared.leave(waiter, item)  # twice is as good as once
        if not self.waiters[item]:
            del self.flying[place]

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), value=st.none() | st.integers(1, 100))
    def finish(self, data: st.DataObject, value: int | None) -> None:
        place = data.draw(st.sampled_from(sorted(self.flying)))
        item = self.flying.pop(place)
        vector = None if value is None else result(np.full(4, value, np.float32))
        assert self.shared.finish(item, vector) == self.waiters[item]
        if value is not None:
            self.remembered.pop(place[:2], None)
            self.remembered[place[:2]] = value
            while sum(size(n) for _, n in self.remembered) > CACHE:
                del self.remembered[next(iter(self.remembered))]

    @rule(which=st.integers(0, 1))
    def unload(self, which: int) -> None:
        self.shared.close(self.models[which])
        self.remembered = {place: value for place, value in self.remembered.items() if place[0] != which}

    @invariant()
    def bounds_and_deadlines(self) -> None:
        assert self.shared.bytes <= CACHE
        assert self.shared.bytes == sum(size(n) for _, n in self.remembered)
        for item in self.flying.values():
            assert item.waiters == self.waiters[item]
            deadlines = [waiter.deadline for waiter in item.waiters]
            expected = None if None in deadlines else max(each for each in deadlines if each is not None)
            assert item.deadline == expected


TestSharing = Machine.TestCase
TestSharing.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
