"""Calls that cost a client nothing are answered at once, but for those of a connection that has too many."""

import asyncio

import pytest

from trimtab_server.rpc import pace
from trimtab_server.rpc.pace import (
    BURST_SECONDS,
    CHEAP,
    LONGEST_SECONDS,
    NOTHING,
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
    assert calls.delay("b", cost, 100.0) == 0.0  # another's is not later for it
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
