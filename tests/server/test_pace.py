"""Calls that come to nothing are answered at once, but for those of a connection that has too many."""

import asyncio

import pytest

from trimtab_server.rpc import pace
from trimtab_server.rpc.pace import BURST, INTERVAL_SECONDS, REMEMBERED, Pace


def test_so_many_at_once_and_then_one_after_the_other() -> None:
    calls = Pace()
    assert [calls.delay("a", 100.0) for _ in range(BURST)] == [0.0] * BURST
    assert [calls.delay("a", 100.0) for _ in range(3)] == pytest.approx(
        [(n + 1) * INTERVAL_SECONDS for n in range(3)]
    )
    assert calls.delay("b", 100.0) == 0.0  # another's is not later for it
    for _ in range(1000):
        assert calls.delay("a", 100.0) <= pace.LONGEST_SECONDS + 1e-6
    assert calls.delay("a", 103.0) == 0.0  # who was quiet begins anew


def test_connections_are_forgotten() -> None:
    calls = Pace()
    for number in range(3 * REMEMBERED):
        calls.delay(str(number), float(number))
    assert len(calls._due) <= REMEMBERED + 1


async def test_a_call_that_is_taken_back_keeps_its_place_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "BURST", 0)
    monkeypatch.setattr(pace, "INTERVAL_SECONDS", 0.05)
    calls, loop = Pace(), asyncio.get_running_loop()
    begun = loop.time()
    waiting = asyncio.create_task(calls.wait("a"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert loop.time() - begun >= 0.05
