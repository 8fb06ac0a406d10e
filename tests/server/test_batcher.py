"""The sans-IO batcher, under a fake clock: whatever comes in whatever order, its promises hold."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trimtab_server.batch import Cost, Item, Model
from trimtab_server.batcher import WORTHWHILE, Batcher

MAX_TOKENS, MAX_TEXTS = 600, 12


def model(name: str) -> Model:
    return Model(name, 1, "fp32", Path("none"), (), 8, 512, 0)


def item(of: Model, length: int, deadline: float | None = None) -> Item:
    return Item(of, np.zeros(length, np.int32), None, 0, deadline)


class Machine(RuleBasedStateMachine):
    """Adds, cancels, pops and lets time pass, against a plain list of what ought to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = Batcher(MAX_TOKENS, MAX_TEXTS)
        self.models = [model("a"), model("b")]
        # One graph that is dear to start, one that is almost free to start.
        self.batcher.open(self.models[0], Cost(0.010, 0.001))
        self.batcher.open(self.models[1], Cost(0.0001, 0.001))
        self.now = 0.0
        self.waiting: list[Item] = []
        self.overtaken: dict[Item, int] = {}

    @rule(which=st.integers(0, 1), length=st.integers(1, 700), patience=st.none() | st.floats(0, 5))
    def add(self, which: int, length: int, patience: float | None) -> None:
        deadline = None if patience is None else self.now + patience
        new = item(self.models[which], length, deadline)
        self.overtaken[new] = len(self.waiting)
        self.batcher.add(new)
        self.waiting.append(new)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(self.waiting), max_size=3))
        self.batcher.cancel(gone)
        self.batcher.cancel(gone)  # twice is as good as once
        self.waiting = [each for each in self.waiting if each not in gone]

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
        assert self.waiting[0] in batch.items, "the one that has waited longest goes first"
        assert set(batch.items) <= set(self.waiting) and len(set(batch.items)) == len(batch.items)
        assert all(each.model is batch.model for each in batch.items)
        assert len(batch.items) <= MAX_TEXTS
        assert batch.padded_tokens <= MAX_TOKENS or len(batch.items) == 1
        for each in batch.items:
            del self.overtaken[each]
        self.waiting = [each for each in self.waiting if each not in batch.items]
        for each in self.waiting:
            self.overtaken[each] -= 1
            assert self.overtaken[each] >= 0, "k older items delay an item by k batches at most"

    @invariant()
    def counts(self) -> None:
        assert len(self.batcher) == len(self.waiting)
        assert self.batcher.tokens == sum(each.length for each in self.waiting)


TestBatcher = Machine.TestCase
TestBatcher.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=60), st.floats(0.1, 200))
def test_each_window_is_the_best_there_is(lengths: list[int], overhead: float) -> None:
    """Against every contiguous window of the sorted lengths that holds the oldest item."""
    one = model("a")
    batcher = Batcher(MAX_TOKENS, MAX_TEXTS)
    batcher.open(one, Cost(overhead, 1.0))
    items = [item(one, length) for length in lengths]
    for each in items:
        batcher.add(each)
    batch = batcher.pop(0.0).batch
    assert batch is not None
    budget = min(MAX_TOKENS, max(1, round(overhead / WORTHWHILE)))
    ordered = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    anchor = ordered.index(0)
    best = 0.0
    for first in range(anchor + 1):
        for last in range(anchor + 1, len(ordered) + 1):
            size, width = last - first, lengths[ordered[last - 1]]
            if size == 1 or (size * width <= budget and size <= MAX_TEXTS):
                real = sum(lengths[index] for index in ordered[first:last])
                best = max(best, real / (overhead + size * width))
    assert batch.tokens / (overhead + batch.padded_tokens) == pytest.approx(best)


def test_long_and_short_do_not_ride_together() -> None:
    one = model("a")
    batcher = Batcher(16384, 256)
    batcher.open(one, Cost(0.002, 0.0002))  # a run costs as much as ten tokens
    for length in [8, 400, 9, 410, 8]:
        batcher.add(item(one, length))
    first, second = batcher.pop(0.0).batch, batcher.pop(0.0).batch
    assert first is not None and second is not None
    assert [each.length for each in first.items] == [8, 8, 9]
    assert [each.length for each in second.items] == [400]  # 2 x 410 is over what is worthwhile


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
    popped = batcher.pop(0.0).batch
    assert popped is not None and popped.items == (items[1],)
