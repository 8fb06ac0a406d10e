"""Versions are swapped and servers replaced under load: how many requests fail."""

import shutil
import threading
import time
from pathlib import Path

from bench.chaos import known, replicas
from bench.chaos.callers_process import CallersProcess
from bench.chaos.replicas import Replica, reload
from bench.chaos.table import Bar, PartResult

# The old version is unloaded once the new one serves and the old one's calls are answered. Streams keep the
# version that they began with, so they get the time of one more swap.
CONFIG = """\
[engine]
costs = "{costs}"
[versions]
newest = 2
poll_seconds = {poll}
"""
POLL_SECONDS = 0.2


def run(folder: Path, swaps: int) -> PartResult:
    """Half of the swaps by polling, half by calls, and a rollover of both servers after each half."""
    bundle = known.bundle()
    figures: dict[str, float] = {}
    failed = missing = wrong = 0
    for how, poll in (("polling", POLL_SECONDS), ("calls", 0.0)):
        repository = folder / how / "models"
        repository.mkdir(parents=True)
        replicas.copy_of(bundle, repository)
        config = CONFIG.format(costs=folder / how / "costs", poll=poll)
        pair = [Replica(name, folder / how / name, repository, config) for name in ("one", "two")]
        with replicas.running(*pair):
            load = CallersProcess(replicas.address(*pair), 1000)
            begun = time.monotonic()
            try:
                load.until_answered(500)
                for version in range(2, 2 + swaps // 2):
                    _swap(bundle, repository, version, [] if poll else pair)
                    load.until_answered(100)
                for replica in pair:
                    load.until_answered(1000)
                    if replica.end() != 0:
                        failed += 1
                    replica.start()
                    load.until_answered(1000)
                told = load.finish()
            finally:
                load.kill()
        ended = sum(told.get(name, 0) for name in ("answered", "errors", "given_up"))
        missing += told.get("sent", 0) - ended if told.get("over") else 1
        failed += told.get("errors", 0)
        wrong += told.get("wrong", 0) + told.get("twice", 0)
        figures[f"requests, {how}"] = told.get("sent", 0)
        seconds, sent = time.monotonic() - begun, told.get("sent", 0)
        print(f"  {how:<8} {seconds:4.0f} s  {sent:7} sent  errors {told.get('by_error')}")
        for line in told.get("unknown", []):
            print(f"    {line}")
    return PartResult(
        {"swaps": swaps // 2 * 2, "rollovers": 4, **figures},
        [Bar("failed", failed, 0), Bar("lost", missing, 0), Bar("another's vector, or twice", wrong, 0)],
    )


def _swap(bundle: Path, repository: Path, version: int, called: list[Replica]) -> None:
    """Add a version and wait until it serves; the version before the last is removed."""
    replicas.copy_of(bundle, repository, version=version)
    threads = [threading.Thread(target=reload, args=(replica, known.NAME)) for replica in called]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not called:
        time.sleep(2 * POLL_SECONDS)
    shutil.rmtree(repository / known.NAME / str(version - 3), ignore_errors=True)
