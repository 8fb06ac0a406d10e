"""Calls that arrive by the hundred wait in the lobby; whoever has few of them is let in soon."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab_server.fronts.grpc.lobby import FEW, FREE, LISTEN_SECONDS, MANY, PAUSE_SECONDS, Lobby
from trimtab_server.turns import Flow, Turns


class Arriving:
    """Calls that arrive; `now` is what the lobby takes for the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.turns = Turns()
        self.lobby = Lobby(self.turns, lambda: self.now)
        loop = asyncio.get_running_loop()
        self.timers: list[Callable[[], None]] = []
        timed: Any = SimpleNamespace(
            create_future=loop.create_future,
            call_soon=loop.call_soon,
            call_later=lambda seconds, what: self.timers.append(what),
        )
        self.lobby._loop = timed
        self.in_: list[str] = []
        self.calls: set[asyncio.Task[None]] = set()

    async def arrive(self, peer: str, times: int = 1) -> None:
        """So many calls of this connection; they are let in, or wait, when this returns."""
        for _ in range(times):
            self.calls.add(asyncio.create_task(self._call(peer)))
        await self.passes(1)

    async def passes(self, number: int) -> None:
        for _ in range(2 * number):  # a call goes on in the pass after the one in which it is let in
            await asyncio.sleep(0)

    async def tick(self) -> None:
        """The lobby's timer fires."""
        self.timers.pop()()
        await self.passes(1)

    async def quiet(self) -> None:
        """A tick goes by in which no call comes: the first is let in."""
        await self.tick()
        await self.tick()

    async def fill(self) -> None:
        """As many calls as never wait, and one that does."""
        await self.arrive("filling", FREE + 1)
        assert self.in_ == ["filling"] * FREE
        self.in_.clear()

    async def _call(self, peer: str) -> None:
        if self.lobby.arrived():
            await self.lobby.wait(peer)
        self.in_.append(peer)


@pytest.fixture
async def arriving() -> AsyncIterator[Arriving]:
    calls = Arriving()
    yield calls
    calls.lobby.free()
    await asyncio.gather(*calls.calls, return_exceptions=True)


async def test_nobody_waits_while_calls_come_in_moderation(arriving: Arriving) -> None:
    for _ in range(10):
        await arriving.arrive("a", FREE)
        arriving.now += 2 * PAUSE_SECONDS
    assert len(arriving.in_) == 10 * FREE


async def test_whoever_has_few_calls_goes_before_those_who_have_many(arriving: Arriving) -> None:
    await arriving.fill()
    for peer in ("many", "more"):
        await arriving.arrive(peer, 200)
    await arriving.arrive("few", FEW)
    assert not arriving.in_  # there may be more to take up
    await arriving.quiet()
    await arriving.passes(100)
    before = 1 + 2 * FEW  # the first of those who fill it, and of the others
    places = [place for place, peer in enumerate(arriving.in_, 1) if peer == "few"]
    assert len(places) == FEW and max(places) <= 2 * (before + FEW)  # every other turn is another's


async def test_connections_with_many_calls_take_turns(arriving: Arriving) -> None:
    await arriving.fill()
    for peer in ("a", "b", "c"):
        await arriving.arrive(peer, 100)
    await arriving.quiet()
    await arriving.passes(90)
    counts = [arriving.in_.count(peer) for peer in ("a", "b", "c")]
    assert min(counts) > 20 and max(counts) - min(counts) <= 1


async def test_calls_are_taken_up_first_but_not_for_ever(arriving: Arriving) -> None:
    """While they come, nobody is let in and no large work is done; after some time, for some time."""
    await arriving.fill()
    work = asyncio.create_task(arriving.turns.do(Flow("large", small=False), lambda: "done"))
    for _ in range(3):
        await arriving.arrive("a", MANY)
        await arriving.tick()
        await arriving.passes(3)
    assert not arriving.in_ and not work.done()
    await arriving.arrive("a", MANY)
    arriving.now += LISTEN_SECONDS
    await arriving.tick()
    await arriving.passes(3)
    assert arriving.in_ and await work == "done"


async def test_whoever_was_let_in_does_not_wait_for_others_to_leave(arriving: Arriving) -> None:
    """Once all are in, calls do not wait any more."""
    await arriving.fill()
    await arriving.tick()
    await arriving.passes(3)
    assert arriving.in_ == ["filling"]
    await arriving.arrive("a", FREE)
    assert arriving.in_.count("a") == FREE


async def test_cancelled_calls_leave_and_take_nobodys_turn(arriving: Arriving) -> None:
    await arriving.fill()
    await arriving.arrive("gone", 100)
    for call in list(arriving.calls):
        call.cancel()
    await arriving.arrive("b", 3)
    await arriving.quiet()
    await arriving.passes(4)
    assert arriving.in_ == ["b"] * 3


async def test_everybody_is_let_in_when_the_server_drains(arriving: Arriving) -> None:
    await arriving.fill()
    await arriving.arrive("a", 500)
    arriving.lobby.free()
    await arriving.arrive("b", 500)
    await asyncio.gather(*arriving.calls)
    assert len(arriving.in_) == 1 + 500 + 500
