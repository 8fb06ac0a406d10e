"""Requests to two servers during faults of every kind: how many are lost, answered twice, or wrong."""

import time
from pathlib import Path
from typing import Any

from bench.chaos import injected, known, replicas, several
from bench.chaos.callers_process import CallersProcess
from bench.chaos.injected import ISOLATED, OTHER, FaultContext
from bench.chaos.replicas import Replica
from bench.chaos.table import Bar, PartResult

# Far more than the default limits let clients hold here.
PEAK_MB = 1024
CONFIG = """\
[engine]
costs = "{costs}"
{isolation}
[versions]
newest = 3
[logging]
level = "info"
calls = true
[server]
drain_seconds = 10.0
[limits]
max_connections = 1000
"""


def run(
    folder: Path, requests: int, *, quick: bool, only: tuple[str, ...] = (), front_ends: int = 1
) -> PartResult:
    """This many requests, and at least one round of the schedule, or of the faults named. The second server
    has so many front ends."""
    bundle, repository = known.bundle(), folder / "models"
    more = several.bundles()
    several.truth()  # before anything is timed
    repository.mkdir(parents=True)
    for name in (known.NAME, OTHER):
        replicas.copy_of(bundle, repository, name)
    for name, other in more.items():
        replicas.copy_of(other, repository, name)
    pair = _pair(folder, repository, front_ends)
    begun = time.monotonic()
    with replicas.running(*pair):
        load = CallersProcess(replicas.address(*pair), requests, several=True)
        world = FaultContext(pair, repository, bundle, CONFIG.format(costs="", isolation=""), load, quick)
        try:
            load.until_answered(500)
            warm = [replica.resident() for replica in pair]
            faults = _inject(world, requests, only, begun)
            told = load.finish()
            well = all(replicas.serving(replica) for replica in pair)
            grown = max(replica.resident() / before for replica, before in zip(pair, warm, strict=True))
            peak = max(replica.peak() for replica in pair) >> 20
        finally:
            load.kill()
            if world.tls is not None:
                world.tls.replica.kill()
    if told.get("unknown"):
        print("  " + "\n  ".join(told["unknown"]))
    figures = {
        "front_ends": front_ends, "requests": told.get("sent", 0), "answered": told.get("answered", 0),
        "several": told.get("several", 0),
        "errors": told.get("errors", 0), "given_up": told.get("given_up", 0), "faults": faults,
        "seconds": round(time.monotonic() - begun, 1), "grown": round(grown, 3), "peak_mb": peak,
        "by_error": told.get("by_error", {}), "problems": world.problems,
        **{name: round(sum(values), 1) for name, values in world.notes.items()},
    }  # fmt: skip
    return PartResult(figures, _bars(world, told, requests, peak, well=well))


def _pair(folder: Path, repository: Path, front_ends: int) -> tuple[Replica, Replica]:
    """The two servers: one with device processes, one whose clock can be made to jump."""
    shifted = replicas.FAKETIME.exists()
    if not shifted:
        print("  libfaketime is not installed: clocks do not jump (Debian: apt-get install faketime)")
    isolated, plain = (
        CONFIG.format(costs=folder / "costs", isolation=line) for line in ('isolation = "process"', "")
    )
    return (
        Replica(ISOLATED, folder / ISOLATED, repository, isolated),
        Replica("two", folder / "two", repository, plain, shifted=shifted, front_ends=front_ends),
    )


def _inject(world: FaultContext, requests: int, only: tuple[str, ...], begun: float) -> int:
    """Round after round of faults, until enough requests are sent; how many faults there were."""
    faults, load = 0, world.load
    while not faults or load.sent() < requests:
        for name, fault in injected.FAULTS.items():
            if (only and name not in only) or (world.turn and load.sent() >= requests):
                continue
            before, at = load.answered(), time.monotonic()
            fault(world)
            load.until_answered(200)
            faults += 1
            took, answered = time.monotonic() - at, load.answered() - before
            resident = "/".join(f"{replica.resident() >> 20}" for replica in world.pair)
            print(
                f"  {time.monotonic() - begun:5.0f} s  {name:<13} {world.one.name:<4} {took:5.1f} s"
                f"  {answered:6} answered  {load.sent():7} sent  {resident} MB", flush=True,
            )  # fmt: skip
        world.turn += 1
    return faults


def _bars(world: FaultContext, told: dict[str, Any], requests: int, peak_mb: int, *, well: bool) -> list[Bar]:
    replicas_seen = [*world.pair, *([world.tls.replica] if world.tls else [])]
    logs = "".join(replica.log() for replica in replicas_seen)
    ended = sum(told.get(name, 0) for name in ("answered", "errors", "given_up"))
    missing = told.get("sent", 0) - ended if told.get("over") else requests
    return [
        Bar("lost", missing, 0),
        Bar("answered twice", told.get("twice", 0), 0),
        Bar("another's vector", told.get("wrong", 0), 0),
        Bar("errors of the servers' own", logs.count("internal error"), 0),
        Bar("problems", len(world.problems), 0),
        Bar("not serving at the end", int(not well), 0),
        Bar("peak of resident memory, MB", peak_mb, PEAK_MB),
    ]
