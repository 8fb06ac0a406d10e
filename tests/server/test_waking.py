"""Threads that wake, and those that they would interrupt."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab_server import waking
from trimtab_server.app import App
from trimtab_server.config import Config
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place


def on_a_thread(work: Callable[[], int]) -> int:
    """What `work` returns on a thread of its own, whose policy ends with it."""
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(work()))
    thread.start()
    thread.join()
    return seen[0]


def test_a_polite_thread_starts_polite_threads() -> None:
    def work() -> int:
        waking.politely()
        return on_a_thread(lambda: os.sched_getscheduler(0))

    assert on_a_thread(work) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize(("kind", "policy"), [("cuda", os.SCHED_BATCH), ("cpu", os.SCHED_OTHER)])
def test_a_server_is_polite_if_it_computes_elsewhere(kind: str, policy: int, tmp_path: Path) -> None:
    async def build() -> int:
        app = App(Config(), tmp_path, Opening(), [Place(kind, 0, workers=1)])
        try:
            return os.sched_getscheduler(0)
        finally:
            await app.stop()

    assert on_a_thread(lambda: asyncio.run(build())) == policy
