"""Threads that wake, and those that they would interrupt."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trimtab_server import waking
from trimtab_server.app import App
from trimtab_server.config import Config
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place


def on_a_thread(work: Callable[[], int]) -> int:
    """What `work` returns on a thread of its own, whose policy ends with it."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result()


def usual() -> None:
    """Give this thread the usual policy: another test may have given its process another one."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_a_polite_thread_starts_polite_threads() -> None:
    def work() -> int:
        usual()
        waking.politely()
        return on_a_thread(lambda: os.sched_getscheduler(0))

    before = os.sched_getscheduler(0)
    assert on_a_thread(work) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize(("kind", "policy"), [("cuda", os.SCHED_BATCH), ("cpu", os.SCHED_OTHER)])
def test_a_server_is_polite_if_it_computes_elsewhere(kind: str, policy: int, tmp_path: Path) -> None:
    async def build() -> int:
        usual()
        app = App(Config(), tmp_path, Opening(), [Place(kind, 0, workers=1)])
        try:
            return os.sched_getscheduler(0)
        finally:
            await app.stop()

    assert on_a_thread(lambda: asyncio.run(build())) == policy


def test_nobody_waits_for_a_rare_condition_and_whoever_does_is_woken() -> None:
    lock = threading.Lock()
    condition, said = waking.RareCondition(lock), []
    waits = threading.Event()

    def wait() -> None:
        with lock:
            waits.set()
            condition.wait_for(lambda: said)
            said.append("woken")

    with lock:
        condition.notify_all()
    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait()
    with lock:  # which it holds until it waits
        said.append("now")
        condition.notify_all()
    thread.join()
    assert said == ["now", "woken"]
