"""Work that hangs is given up, and holds up nothing else."""

import asyncio
import threading

import pytest

from trimtab.errors import FailedPrecondition, Unavailable
from trimtab_server import limited

PATIENCE = 60.0


async def test_what_work_returns_and_raises_comes_back() -> None:
    assert await limited.run(PATIENCE, "work", lambda: 7) == 7

    def panic() -> None:
        raise KeyboardInterrupt("as bad as it gets")

    with pytest.raises(RuntimeError, match="KeyboardInterrupt: as bad"):
        await limited.run(PATIENCE, "work", panic)
    with pytest.raises(ZeroDivisionError):
        await limited.run(PATIENCE, "work", lambda: 1 // 0)


async def test_what_hangs_is_given_up_and_not_begun_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limited, "MOST_GIVEN_UP", 2)
    monkeypatch.setattr(limited, "_given_up", set())
    gate = threading.Event()
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match=r"reading it made no progress for 0\.01 s"):
            await limited.run(0.01, "reading it", gate.wait)
    with pytest.raises(Unavailable, match="2 others hang"):
        await limited.run(PATIENCE, "reading it", lambda: None)
    gate.set()
    async with asyncio.timeout(PATIENCE):
        while limited._given_up:
            await asyncio.sleep(0.001)
    await limited.run(PATIENCE, "reading it", lambda: None)


async def test_work_that_gets_on_may_take_longer_than_its_steps() -> None:
    heartbeat = limited.Heartbeat()
    gate = threading.Event()
    steps = 0

    def work() -> None:
        nonlocal steps
        while not gate.is_set():
            heartbeat.step()
            steps += 1

    running = asyncio.create_task(limited.run(2.0, "work", work, heartbeat))
    loop = asyncio.get_running_loop()
    until = loop.time() + 2.2
    while loop.time() < until and not running.done():
        await asyncio.sleep(0.05)
    assert not running.done() and steps > 1
    gate.set()
    await running


async def test_what_was_given_up_is_told_so_at_its_next_step() -> None:
    heartbeat, gate = limited.Heartbeat(), threading.Event()
    told = threading.Event()

    def work() -> None:
        gate.wait()
        try:
            heartbeat.step()
        except RuntimeError:
            told.set()

    with pytest.raises(FailedPrecondition):
        await limited.run(0.01, "work", work, heartbeat)
    gate.set()
    assert await asyncio.to_thread(told.wait, PATIENCE)


async def test_one_at_a_time_but_nobody_waits_for_what_takes_long() -> None:
    lock = limited.PatientLock(patience=0.01, most=3)
    inside, release = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        async with lock.hold():
            inside.set()
            await release.wait()

    hanging = asyncio.create_task(hang())
    await inside.wait()
    async with asyncio.timeout(PATIENCE), lock.hold():
        assert not hanging.done()
    release.set()
    await hanging
    patient = limited.PatientLock(patience=PATIENCE)
    order: list[str] = []

    async def enter(name: str) -> None:
        async with patient.hold():
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    await asyncio.gather(enter("one"), enter("two"))
    assert order == ["one begins", "one ends", "two begins", "two ends"]
