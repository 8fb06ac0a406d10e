"""Requests to two servers during faults of every kind: how many are lost, answered twice, or wrong."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import trustme
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench import processes
from bench.chaos import attacks, known, replicas
from bench.chaos.replicas import Replica
from bench.chaos.table import Bar, Part
from trimtab_server.config import EngineSettings

OTHER = "other"  # an encoder without requests, to be loaded and unloaded
CONNECTIONS = 1500
# Far more than the default limits let clients hold here.
PEAK_MB = 1024
ISOLATED = "one"  # the server with isolation = "process"
# The numbers of the texts that vanishing clients request: nobody else requests them.
VANISHING, CERTIFIED = 10_000_000, 12_000_000
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


class Load:
    """A process of callers, and its latest counts."""

    def __init__(self, url: str, requests: int, *, first: int = 0, tls: Path | None = None) -> None:
        command = [processes.PYTHON, "-m", "bench.chaos.callers", url, "--requests", str(requests)]
        command += ["--first", str(first), *(["--tls", str(tls)] if tls else [])]
        self.process = subprocess.Popen(
            command, cwd=processes.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.told: dict[str, Any] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def sent(self) -> int:
        """Requests so far."""
        return int(self.told.get("sent", 0))

    def answered(self) -> int:
        """Right answers so far, as far as they were compared."""
        return int(self.told.get("checked", 0))

    def until_answered(self, more: int, seconds: float = 60) -> None:
        """Wait until this many more are answered."""
        least, until = self.answered() + more, time.monotonic() + seconds
        while self.answered() < least:
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError("the callers are not answered any more")
            time.sleep(0.05)

    def finish(self, seconds: float = 900) -> dict[str, Any]:
        """Close their standard input, and wait until they have sent and heard everything."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(seconds)
        self._reader.join()
        return self.told

    def kill(self) -> None:
        """Vanish, with requests in flight."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told = json.loads(line)


@dataclass
class World:
    """What the faults act on."""

    pair: tuple[Replica, Replica]
    repository: Path
    bundle: Path
    load: Load
    quick: bool
    turn: int = 0
    tls: "Rotated | None" = None
    notes: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def one(self) -> Replica:
        """The replica whose turn it is; both have theirs."""
        return self.pair[self.turn % 2]

    @property
    def seconds(self) -> float:
        """How long a fault lasts."""
        return 1.0 if self.quick else 3.0

    def note(self, name: str, value: float) -> None:
        """A figure."""
        self.notes.setdefault(name, []).append(value)


class Rotated:
    """A replica with TLS, whose certificates are replaced during calls."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(self.authority.cert_pem.bytes())
        self.renew()
        config = CONFIG.format(costs="", isolation="")
        tls = f'[server.tls]\ncertificate = "{folder}/server.pem"\nkey = "{folder}/server.key"\n'
        self.replica = Replica("tls", folder / "replica", repository, config + tls)

    def renew(self) -> None:
        """A new pair, replaced file by file, as certificate tools do it."""
        pair = self.authority.issue_cert("localhost", "127.0.0.1")
        for name, content in (
            ("server.key", pair.private_key_pem.bytes()),
            ("server.pem", b"".join(each.bytes() for each in pair.cert_chain_pems)),
        ):
            new = self.folder / f"{name}.new"
            new.write_bytes(content)
            new.rename(self.folder / name)


def kill(world: World) -> None:
    """Kill a server with SIGKILL, and restart it."""
    world.one.kill()
    time.sleep(0.3)
    world.one.start()


def pause(world: World) -> None:
    """SIGSTOP, and SIGCONT seconds later."""
    world.one.signal(signal.SIGSTOP)
    time.sleep(world.seconds)
    world.one.signal(signal.SIGCONT)


def roll_over(world: World) -> None:
    """SIGTERM, and another process takes over."""
    if (status := world.one.end()) != 0:
        world.problems.append(f"SIGTERM ended {world.one.name} with status {status}")
    world.one.start()


def vanish(world: World) -> None:
    """Clients that are killed with requests in flight."""
    address = replicas.address(*world.pair)
    for number in range(1 if world.quick else 3):
        load = Load(address, 1_000_000, first=VANISHING + 100_000 * number)
        try:
            load.until_answered(500)
        finally:
            load.kill()


def slow_readers(world: World) -> None:
    """Streams that send and never read."""
    before = world.one.resident()
    attacks.slow_readers(world.one.port, 8 if world.quick else 32, world.seconds + 2)
    world.note("slow readers MB", (world.one.resident() - before) / 2**20)


def malformed(world: World) -> None:
    """Malformed frames, headers and messages of every kind."""
    world.note("malformed", attacks.malformed(world.one.port, 2 * world.seconds, world.turn))


def flood(world: World) -> None:
    """Thousands of connections."""
    count = attacks.flood(world.one.port, CONNECTIONS // (5 if world.quick else 1), world.seconds)
    world.note("connections", count)


def huge(world: World) -> None:
    """Requests at and beyond every size limit."""
    world.note("huge", attacks.huge(world.one.port, world.seconds))


def full_disk(world: World) -> None:
    """No file can grow, neither the log nor the costs, while an encoder is loaded again."""
    world.one.limit_files(0)
    reload(world.one, OTHER, unload=True)
    time.sleep(world.seconds)
    world.one.limit_files(None)


def clock(world: World) -> None:
    """A server's clock jumps forwards and back."""
    replica = world.pair[1]
    if replica.shifted:
        for shift in ("+3600", "-3600", "+864000", "-864000", "+0"):
            replica.clock.write_text(f"{shift}\n")
            world.load.until_answered(200)
            time.sleep(1.1)  # the library checks its file each second


def reloads(world: World) -> None:
    """Add, load and remove versions, and load and unload an encoder, on both servers at once."""
    version = 2 + world.turn
    replicas.copy_of(world.bundle, world.repository, version=version)

    def storm(replica: Replica) -> None:
        for number in range(5 if world.quick else 20):
            reload(replica, OTHER, unload=bool(number % 2))
            reload(replica, known.NAME)
        reload(replica, OTHER)

    threads = [threading.Thread(target=storm, args=(replica,)) for replica in world.pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for old in range(1, version - 3):
        shutil.rmtree(world.repository / known.NAME / str(old), ignore_errors=True)


def certificates(world: World) -> None:
    """Replace certificates while connections are made and used, one pair after the other."""
    if world.tls is None:
        world.tls = Rotated(world.pair[0].folder.parent / "tls", world.repository)
        world.tls.replica.start()
    tls = world.tls
    load = Load(tls.replica.url, 200, first=CERTIFIED + 100_000 * world.turn, tls=tls.ca)
    try:
        for _ in range(3 if world.quick else 8):
            tls.renew()
            load.until_answered(100)
            time.sleep(1.1)  # the server checks its files each second
            _handshake(tls)
        told = load.finish(60)
    finally:
        load.kill()
    bad = {name: told.get(name, 0) for name in ("lost", "twice", "wrong", "errors")}
    if any(bad.values()) or not told.get("over"):
        world.problems.append(f"while certificates were exchanged: {bad} {told.get('by_error')}")


def _handshake(tls: Rotated) -> None:
    """A new connection meets the new certificate."""
    import ssl

    served = ssl.get_server_certificate(("127.0.0.1", tls.replica.port), timeout=10)
    if served.strip() not in (tls.folder / "server.pem").read_text():
        raise RuntimeError("a new connection was served an old certificate")


def workers(world: World) -> None:
    """Kill a server's device processes with SIGKILL while it answers."""
    (replica,) = [each for each in world.pair if each.name == ISOLATED]
    for _ in range(2 if world.quick else 5):
        for child in replica.children():
            os.kill(child, signal.SIGKILL)
            world.note("workers killed", 1)
        world.load.until_answered(500)


FAULTS: dict[str, Callable[[World], None]] = {
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
    "full disk": full_disk,
    "clock": clock,
    "certificates": certificates,
}


def reload(replica: Replica, name: str, *, unload: bool = False) -> None:
    with grpc.insecure_channel(replica.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        if unload:
            stub.RepositoryModelUnload(
                service_pb2.RepositoryModelUnloadRequest(model_name=name), timeout=30, wait_for_ready=True
            )
        stub.RepositoryModelLoad(
            service_pb2.RepositoryModelLoadRequest(model_name=name), timeout=30, wait_for_ready=True
        )


def serving(replica: Replica) -> bool:
    """Whether it says that it is ready."""
    with grpc.insecure_channel(replica.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=10, wait_for_ready=True).ready)


def run(folder: Path, requests: int, *, quick: bool, only: tuple[str, ...] = ()) -> Part:
    """This many requests, and at least one round of the schedule, or of the faults named."""
    bundle, repository = known.bundle(), folder / "models"
    repository.mkdir(parents=True)
    for name in (known.NAME, OTHER):
        replicas.copy_of(bundle, repository, name)
    shifted = replicas.FAKETIME.exists()
    if not shifted:
        print("  libfaketime is not installed: clocks do not jump (Debian: apt-get install faketime)")
    # If this server supports it, one of the two uses device processes.
    isolation = 'isolation = "process"' if "isolation" in EngineSettings.__struct_fields__ else ""
    isolated, plain = (CONFIG.format(costs=folder / "costs", isolation=line) for line in (isolation, ""))
    pair = (
        Replica(ISOLATED, folder / ISOLATED, repository, isolated),
        Replica("two", folder / "two", repository, plain, shifted=shifted),
    )
    begun = time.monotonic()
    with replicas.running(*pair):
        load = Load(replicas.address(*pair), requests)
        world = World(pair, repository, bundle, load, quick)
        try:
            load.until_answered(500)
            warm = [replica.resident() for replica in pair]
            faults = 0
            while not faults or load.sent() < requests:
                for name, fault in FAULTS.items():
                    if (only and name not in only) or (world.turn and load.sent() >= requests):
                        continue
                    before, at = load.answered(), time.monotonic()
                    fault(world)
                    load.until_answered(200)
                    faults += 1
                    took, answered = time.monotonic() - at, load.answered() - before
                    resident = "/".join(f"{replica.resident() >> 20}" for replica in pair)
                    print(
                        f"  {time.monotonic() - begun:5.0f} s  {name:<13} {world.one.name:<4} {took:5.1f} s"
                        f"  {answered:6} answered  {load.sent():7} sent  {resident} MB", flush=True,
                    )  # fmt: skip
                world.turn += 1
            told = load.finish()
            well = all(serving(replica) for replica in pair)
            grown = max(replica.resident() / before for replica, before in zip(pair, warm, strict=True))
            peak = max(replica.peak() for replica in pair)
        finally:
            load.kill()
            if world.tls is not None:
                world.tls.replica.kill()
    logs = "".join(replica.log() for replica in pair) + (world.tls.replica.log() if world.tls else "")
    ended = sum(told.get(name, 0) for name in ("answered", "errors", "given_up"))
    missing = told.get("sent", 0) - ended if told.get("over") else requests
    figures = {
        "requests": told.get("sent", 0), "answered": told.get("answered", 0),
        "errors": told.get("errors", 0), "given_up": told.get("given_up", 0), "faults": faults,
        "seconds": round(time.monotonic() - begun, 1), "grown": round(grown, 3), "peak_mb": peak >> 20,
        "by_error": told.get("by_error", {}), "problems": world.problems,
        **{name: round(sum(values), 1) for name, values in world.notes.items()},
    }  # fmt: skip
    if told.get("unknown"):
        print("  " + "\n  ".join(told["unknown"]))
    return Part(
        figures,
        [
            Bar("lost", missing, 0),
            Bar("answered twice", told.get("twice", 0), 0),
            Bar("another's vector", told.get("wrong", 0), 0),
            Bar("errors of the servers' own", logs.count("internal error"), 0),
            Bar("problems", len(world.problems), 0),
            Bar("not serving at the end", int(not well), 0),
            Bar("peak of resident memory, MB", peak >> 20, PEAK_MB),
        ],
    )
