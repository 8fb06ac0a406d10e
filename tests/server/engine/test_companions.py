"""How long what waits is left waiting for companions, under fake clocks."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.engine.test_columns import PATIENCE, ids, running
from trimtab_server.engine.fleet import cores
from trimtab_server.engine.queue.companions import Companions

RUN = 0.002  # seconds, the fixed cost of a run
TOOK = 0.02  # seconds, of each run


def ran(companions: Companions, items: int, now: float = 0.0, idle: float = 0.0) -> None:
    """A run of so many items begins and ends."""
    companions.went()
    companions.answered(items, RUN, TOOK, now, idle)


def test_a_caller_that_is_alone_waits_for_nobody() -> None:
    companions = Companions()
    for number in range(100):
        assert companions.patience(0, number, number) == 0
        companions.came(1)
        assert companions.patience(1, number, number) == 0
        ran(companions, 1, number, number)


def test_those_just_answered_are_waited_for_until_all_are_back() -> None:
    companions = Companions()
    ran(companions, 4)
    for back in range(4):
        assert companions.patience(4 + back, 0.001, 0.0) > 0
        companions.came(1)
    assert companions.patience(8, 0.001, 0.0) == 0


def test_no_more_is_lost_than_the_run_that_may_be_saved_costs() -> None:
    """And less, if there is less to save."""
    companions = Companions()
    ran(companions, 4)
    assert companions.patience(2, 0.0, 0.0) == RUN
    assert companions.patience(2, 0.0, RUN / 4) == RUN * 3 / 4
    assert companions.patience(2, 0.0, RUN) == 0
    assert companions.patience(8, 0.0, 0.0) == RUN / 2


def test_on_a_core_that_is_never_idle_nothing_waits_longer_than_a_run() -> None:
    companions = Companions()
    ran(companions, 4, now=1.0)
    assert companions.patience(4, 1.0 + TOOK * 0.95, 0.0) > 0
    assert companions.patience(4, 1.0 + TOOK, 0.0) == 0


def waits(companions: Companions, runs: int) -> int:
    """In how many of these runs a text waited, although no caller ever came back."""
    count = 0
    for _ in range(runs):
        ran(companions, 4)
        count += companions.patience(4, 0.0, 0.0) > 0
    return count


def test_if_nobody_comes_back_waiting_ends_and_is_rarely_tried_again() -> None:
    companions = Companions()
    assert waits(companions, 50) > 10
    assert 0 < waits(companions, 1000) < 200


def test_once_callers_come_back_they_are_waited_for_again() -> None:
    companions = Companions()
    waits(companions, 100)
    patient = []
    for _ in range(100):
        patient.append(companions.patience(4, 0.0, 0.0) > 0)
        companions.came(4)
        ran(companions, 4)
    assert all(patient[-20:])


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ran"), st.integers(1, 64)),
            st.tuples(st.just("came"), st.integers(1, 64)),
            st.tuples(st.just("idle"), st.integers(1, 64)),
            st.tuples(st.just("asked"), st.integers(0, 64)),
        ),
        max_size=60,
    )
)
def test_whatever_happens_patience_is_bounded(events: list[tuple[str, int]]) -> None:
    companions, now, idle, since, away = Companions(), 0.0, 0.0, float("-inf"), 0
    for what, number in events:
        if what == "ran":
            ran(companions, number, now, idle)
            since, away = now, number
        elif what == "came":
            companions.came(number)
            away = max(0, away - number)
        elif what == "idle":
            now, idle = now + number * RUN / 32, idle + number * RUN / 64
        else:
            patience = companions.patience(number, now, idle)
            assert 0 <= patience <= RUN
            if patience:
                assert away and number
                assert now + patience <= since + TOOK + 1e-9
                assert (now - since) / 2 + patience <= RUN + 1e-9


async def test_a_worker_leaves_a_text_waiting_until_its_companion_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a core that is never idle, where a run is worth any patience."""
    async with running("thread", start=False, idle=lambda: 0.0) as rig:
        companions = rig.engine._companions
        answered = companions.answered

        def dear(items: int, run_seconds: float, took: float, now: float, idle: float) -> None:
            answered(items, PATIENCE, PATIENCE, now, idle)

        monkeypatch.setattr(companions, "answered", dear)

        async def caller(number: int) -> None:
            for turn in range(5):
                await rig.ask([ids(number, turn)])
                for _ in range(20 * number):  # the others come back later
                    await asyncio.to_thread(int)

        callers = [asyncio.create_task(caller(number)) for number in range(3)]
        while len(rig.engine._batcher) < len(callers):
            await asyncio.sleep(0)
        rig.engine.start()
        await asyncio.gather(*callers)
        assert [items for items, _ in rig.runner.runs] == [3] * 5


def test_if_calls_have_a_core_to_themselves_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable", lambda: 2)
    clocks = SimpleNamespace(monotonic=lambda: 10.0, process_time=lambda: 3.0)
    monkeypatch.setattr(cores, "time", clocks)
    assert cores.idle_clock(1) is None
    both = cores.idle_clock(2)
    assert both is not None and both() == 17.0
