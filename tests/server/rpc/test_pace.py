"""Calls that cost a client nothing are answered at once, but for those of a connection that has too many."""

import asyncio

import pytest

from trimtab_server.rpc import pace
from trimtab_server.rpc.pace import (
    BURST_SECONDS,
    CHEAP,
    LONGEST_SECONDS,
    MOST_SHARING,
    NOTHING,
    REFUSED_BYTES_PER_SECOND,
    REMEMBERED,
    TAKEN_BACK,
    Pace,
)


@pytest.mark.parametrize("cost", [NOTHING, TAKEN_BACK, CHEAP])
def test_so_many_at_once_and_then_one_after_the_other(cost: float) -> None:
    calls, burst = Pace(), int(BURST_SECONDS / cost + 1e-6)
    assert [calls.delay("a", cost, 100.0) for _ in range(burst)] == pytest.approx([0.0] * burst, abs=1e-9)
    assert [calls.delay("a", cost, 100.0) for _ in range(3)] == pytest.approx(
        [(burst + n + 1) * cost - BURST_SECONDS for n in range(3)]
    )
    assert calls.delay("b", cost, 100.0) == 0.0  # who has made one call is not later for it
    for _ in range(2000):
        assert calls.delay("a", cost, 100.0) <= LONGEST_SECONDS + 1e-6
    assert calls.delay("a", cost, 103.0) == 0.0  # who was quiet begins anew


def test_calls_that_are_answered_do_not_wait_for_those_that_come_to_nothing() -> None:
    calls = Pace()
    for _ in range(1000):
        calls.delay("a", NOTHING, 100.0)
        calls.delay("a", TAKEN_BACK, 100.0)
    assert calls.delay("a", CHEAP, 100.0) == 0.0


def test_a_gateways_checks_are_never_late() -> None:
    """500 a second over one connection, however long."""
    calls = Pace()
    assert all(calls.delay("gateway", CHEAP, number / 500) == 0.0 for number in range(5000))


def test_connections_are_forgotten() -> None:
    calls = Pace()
    for number in range(3 * REMEMBERED):
        calls.delay(str(number), NOTHING, float(number))
    assert len(calls._due) <= REMEMBERED + 1


@pytest.mark.parametrize("many", [1, 10, 50])
def test_connections_that_have_too_many_share_what_one_would_have(many: int) -> None:
    """As clients do that make the next call when one was answered: each has 128 places."""
    calls, answers = Pace(), [[(0.0, place) for place in range(128)] for _ in range(many)]
    answered = 0
    for step in range(2000):
        now = step * 0.01
        for number, places in enumerate(answers):
            for index, (at, place) in enumerate(places):
                if at <= now:
                    answered += now > 10
                    places[index] = now + max(0.01, calls.delay(str(number), TAKEN_BACK, now)), place
    rate = answered / 10
    assert rate <= max(1.1 / TAKEN_BACK, many * 128 / (MOST_SHARING * LONGEST_SECONDS) * 1.1)
    assert calls.delay("quiet", TAKEN_BACK, 20.0) == 0.0


def test_messages_are_read_one_after_the_other_where_they_are_refused() -> None:
    calls = Pace()
    assert calls.read_delay("a", 100.0) == 0.0
    calls.refuse("a", REFUSED_BYTES_PER_SECOND, 100.0)  # takes a second
    assert [calls.read_delay("a", 100.0) for _ in range(3)] == pytest.approx([0.5, 1.5, 2.5])
    assert calls.read_delay("b", 100.0) == 0.0
    for _ in range(3):  # they were good ones
        calls.took("a")
    assert calls.read_delay("a", 100.0) == pytest.approx(0.5)
    assert calls.read_delay("a", 200.0) == 0.0
    assert not calls._refused  # who was quiet begins anew


def test_connections_whose_messages_are_refused_share_what_one_would_have() -> None:
    calls = Pace()
    for number in range(9):
        calls.refuse(str(number), REFUSED_BYTES_PER_SECOND, 100.0)
    calls.refuse("last", REFUSED_BYTES_PER_SECOND, 100.0)
    assert calls.read_delay("last", 100.0) == pytest.approx(10 - BURST_SECONDS)


async def test_a_call_that_is_taken_back_keeps_its_place_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "BURST_SECONDS", 0)
    calls, loop = Pace(), asyncio.get_running_loop()
    begun = loop.time()
    waiting = asyncio.create_task(calls.wait("a", 0.05))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert loop.time() - begun >= 0.05
