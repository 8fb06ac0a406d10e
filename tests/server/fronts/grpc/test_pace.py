"""Calls that cost a client nothing are answered at once, but for those of a connection that has too many."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from trimtab_server.fronts.grpc.pace import (
    BURST_SECONDS,
    CANCELLED,
    CHEAP,
    FAILED,
    OWN_BURST,
    REFUSED_BURST_SECONDS,
    REFUSED_BYTES_PER_SECOND,
    Pacer,
)


class Waiting:
    """Calls that wait for their answers; `now` is what the pace takes for the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pace = Pacer(lambda: self.now)
        self.answered: list[str] = []
        self.calls: set[asyncio.Task[None]] = set()

    async def arrive(self, peer: str, kind: float, times: int = 1) -> None:
        """So many calls of this connection; they are answered, or wait, when this returns."""
        for _ in range(times):
            self.calls.add(asyncio.create_task(self._call(peer, kind)))
        await asyncio.sleep(0)

    async def pass_time(self, seconds: float, kind: float) -> None:
        self.now += seconds
        self.pace._look(self.pace._kinds[kind])
        for _ in range(3):  # from the future by way of its waiter to the call
            await asyncio.sleep(0)

    async def _call(self, peer: str, kind: float) -> None:
        await self.pace.wait(peer, kind)
        self.answered.append(peer)


@pytest.fixture
async def waiting() -> AsyncIterator[Waiting]:
    calls = Waiting()
    yield calls
    calls.pace.free()
    await asyncio.gather(*calls.calls)


@pytest.mark.parametrize("kind", [FAILED, CANCELLED, CHEAP])
async def test_so_many_at_once_and_then_one_after_the_other(waiting: Waiting, kind: float) -> None:
    burst = round(BURST_SECONDS / kind) + OWN_BURST[kind]
    await waiting.arrive("a", kind, burst + 10)
    assert burst - 2 <= len(waiting.answered) <= burst
    before = len(waiting.answered)
    await waiting.pass_time(3.5 * kind, kind)
    assert 3 <= len(waiting.answered) - before <= 4


async def test_kinds_do_not_wait_for_each_other(waiting: Waiting) -> None:
    await waiting.arrive("a", FAILED, 1000)
    await waiting.arrive("a", CANCELLED, 1000)
    before = len(waiting.answered)
    await waiting.arrive("a", CHEAP)
    assert len(waiting.answered) == before + 1


@pytest.mark.parametrize("many", [1, 10, 50])
async def test_however_many_connections_share_one_rate_and_a_quiet_one_does_not_wait(
    waiting: Waiting, many: int
) -> None:
    for number in range(many):
        await waiting.arrive(str(number), CANCELLED, 256)
    await waiting.arrive("quiet", CANCELLED, OWN_BURST[CANCELLED])
    assert waiting.answered.count("quiet") == OWN_BURST[CANCELLED]
    before = len(waiting.answered)
    for _ in range(20):
        await waiting.pass_time(0.01, CANCELLED)
    assert len(waiting.answered) - before <= 0.2 / CANCELLED + 1
    if many > 1:  # and they get the same of it
        counts = [waiting.answered.count(str(number)) for number in range(many)]
        assert min(counts[1:]) >= (len(waiting.answered) - before) // many - 1


async def test_a_gateways_checks_are_never_late(waiting: Waiting) -> None:
    """500 a second over one connection, however long."""
    for number in range(5000):
        waiting.now += 1 / 500
        await waiting.arrive("gateway", CHEAP)
        assert len(waiting.answered) == number + 1


async def test_nobody_waits_while_the_server_drains(waiting: Waiting) -> None:
    await waiting.arrive("a", FAILED, 500)
    assert len(waiting.answered) < 500
    waiting.pace.free()
    await waiting.arrive("a", FAILED)
    await asyncio.gather(*waiting.calls)
    assert len(waiting.answered) == 501


def test_messages_are_read_one_after_the_other_where_they_are_refused() -> None:
    now = 100.0
    calls = Pacer(lambda: now)
    assert calls.read_delay("a") == 0.0
    calls.refuse("a", REFUSED_BYTES_PER_SECOND)  # takes a second
    assert [calls.read_delay("a") for _ in range(3)] == pytest.approx([0.5, 1.5, 2.5])
    assert calls.read_delay("b") == 0.0
    for _ in range(3):  # they were good ones
        calls.took("a")
    assert calls.read_delay("a") == pytest.approx(0.5)
    now = 200.0
    assert calls.read_delay("a") == 0.0
    assert not calls.refused  # who was quiet begins anew


def test_connections_whose_messages_are_refused_share_what_one_would_have() -> None:
    calls = Pacer(lambda: 100.0)
    for number in range(9):
        calls.refuse(str(number), REFUSED_BYTES_PER_SECOND)
    calls.refuse("last", REFUSED_BYTES_PER_SECOND)
    assert calls.read_delay("last") == pytest.approx(10 - REFUSED_BURST_SECONDS)


async def test_a_call_that_is_taken_back_keeps_its_place_until_then(waiting: Waiting) -> None:
    await waiting.arrive("a", CANCELLED, round(BURST_SECONDS / CANCELLED) + OWN_BURST[CANCELLED])
    taken_back = asyncio.create_task(waiting.pace.through("a", CANCELLED))
    await asyncio.sleep(0)
    taken_back.cancel()
    await asyncio.sleep(0)
    assert not taken_back.done()
    await waiting.pass_time(2 * CANCELLED, CANCELLED)
    assert taken_back.done() and taken_back.result() is True
