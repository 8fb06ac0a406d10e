"""The faults of the schedule: what is done to two servers, or by clients, while other calls are answered."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.chaos import attacks, known, replicas
from bench.chaos.callers_process import CallersProcess
from bench.chaos.replicas import Replica
from bench.chaos.rotated import Rotated

OTHER = "other"  # an encoder without requests, to be loaded and unloaded
ISOLATED = "one"  # the server with isolation = "process"
CONNECTIONS = 1500
# The numbers of the texts that only vanishing clients request.
VANISHING, CERTIFIED = 10_000_000, 12_000_000


@dataclass
class FaultContext:
    """What faults act on."""

    pair: tuple[Replica, Replica]
    repository: Path
    bundle: Path
    config: str  # of a further server
    load: CallersProcess
    quick: bool
    turn: int = 0
    tls: Rotated | None = None
    notes: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def one(self) -> Replica:
        """The next replica; both take turns."""
        return self.pair[self.turn % 2]

    @property
    def seconds(self) -> float:
        """How long a fault lasts."""
        return 1.0 if self.quick else 3.0

    def note(self, name: str, value: float) -> None:
        """Record a figure."""
        self.notes.setdefault(name, []).append(value)


def kill(world: FaultContext) -> None:
    """Kill a server with SIGKILL, and restart it."""
    world.one.kill()
    time.sleep(0.3)
    world.one.start()


def pause(world: FaultContext) -> None:
    """SIGSTOP, and SIGCONT seconds later."""
    world.one.signal(signal.SIGSTOP)
    time.sleep(world.seconds)
    world.one.signal(signal.SIGCONT)


def roll_over(world: FaultContext) -> None:
    """SIGTERM, and another process takes over."""
    if (status := world.one.end()) != 0:
        world.problems.append(f"SIGTERM ended {world.one.name} with status {status}")
    world.one.start()


def vanish(world: FaultContext) -> None:
    """Clients that are killed with requests in flight."""
    address = replicas.address(*world.pair)
    for number in range(1 if world.quick else 3):
        load = CallersProcess(address, 1_000_000, first=VANISHING + 100_000 * number)
        try:
            load.until_answered(500)
        finally:
            load.kill()


def slow_readers(world: FaultContext) -> None:
    """Streams that send and never read."""
    before = world.one.resident()
    attacks.slow_readers(world.one.port, 8 if world.quick else 32, world.seconds + 2)
    world.note("slow readers MB", (world.one.resident() - before) / 2**20)


def malformed(world: FaultContext) -> None:
    """Malformed frames, headers and messages of every kind."""
    world.note("malformed", attacks.malformed(world.one.port, 2 * world.seconds, world.turn))


def flood(world: FaultContext) -> None:
    """Thousands of connections."""
    count = attacks.flood(world.one.port, CONNECTIONS // (5 if world.quick else 1), world.seconds)
    world.note("connections", count)


def huge(world: FaultContext) -> None:
    """Requests at and beyond every size limit."""
    world.note("huge", attacks.huge(world.one.port, world.seconds))


def full_disk(world: FaultContext) -> None:
    """No file, neither the log nor the costs, can grow while an encoder is loaded again."""
    world.one.limit_files(0)
    replicas.reload(world.one, OTHER, unload=True)
    time.sleep(world.seconds)
    world.one.limit_files(None)


def clock(world: FaultContext) -> None:
    """A server's clock jumps forwards and back."""
    replica = world.pair[1]
    if replica.shifted:
        for shift in ("+3600", "-3600", "+864000", "-864000", "+0"):
            replica.clock.write_text(f"{shift}\n")
            world.load.until_answered(200)
            time.sleep(1.1)  # the library checks its file each second


def reloads(world: FaultContext) -> None:
    """Add, load and remove versions, and load and unload an encoder, on both servers at once."""
    version = 2 + world.turn
    replicas.copy_of(world.bundle, world.repository, version=version)

    def storm(replica: Replica) -> None:
        for number in range(5 if world.quick else 20):
            replicas.reload(replica, OTHER, unload=bool(number % 2))
            replicas.reload(replica, known.NAME)
        replicas.reload(replica, OTHER)

    threads = [threading.Thread(target=storm, args=(replica,)) for replica in world.pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for old in range(1, version - 3):
        shutil.rmtree(world.repository / known.NAME / str(old), ignore_errors=True)


def certificates(world: FaultContext) -> None:
    """Replace certificates, one pair after another, while connections are made and used."""
    if world.tls is None:
        world.tls = Rotated(world.pair[0].folder.parent / "tls", world.repository, world.config)
        world.tls.replica.start()
    tls = world.tls
    load = CallersProcess(tls.replica.url, 200, first=CERTIFIED + 100_000 * world.turn, tls=tls.ca)
    try:
        for _ in range(3 if world.quick else 8):
            tls.renew()
            load.until_answered(100)
            time.sleep(1.1)  # the server checks its files each second
            tls.check()
        told = load.finish(60)
    finally:
        load.kill()
    bad = {name: told.get(name, 0) for name in ("lost", "twice", "wrong", "errors")}
    if any(bad.values()) or not told.get("over"):
        world.problems.append(f"while certificates were exchanged: {bad} {told.get('by_error')}")


def workers(world: FaultContext) -> None:
    """Kill a server's device processes with SIGKILL while it answers."""
    (replica,) = [each for each in world.pair if each.name == ISOLATED]
    for _ in range(2 if world.quick else 5):
        for child in replica.children():
            os.kill(child, signal.SIGKILL)
            world.note("workers killed", 1)
        world.load.until_answered(500)


def processes(world: FaultContext) -> None:
    """Kill a server's front ends and their engine with SIGKILL, one after another, while it answers."""
    for replica in world.pair:
        for child in replica.children() if replica.front_ends > 1 else ():
            os.kill(child, signal.SIGKILL)
            world.note("front ends and engines killed", 1)
            world.load.until_answered(500)


FAULTS: dict[str, Callable[[FaultContext], None]] = {
    "kill -9": kill,
    "SIGSTOP": pause,
    "malformed": malformed,
    "SIGTERM": roll_over,
    "vanishing": vanish,
    "slow readers": slow_readers,
    "reloads": reloads,
    "huge": huge,
    "flood": flood,
    "workers": workers,
    "processes": processes,
    "full disk": full_disk,
    "clock": clock,
    "certificates": certificates,
}
