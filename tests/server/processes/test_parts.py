"""Parts of a server of several processes, each by itself: ports, lifeline, questions, merged metrics."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from trimtab.errors import ConfigError, InternalError, NotFound
from trimtab_server.observing.merged import MergedMetrics, collected
from trimtab_server.processes import ports
from trimtab_server.processes.control import Peer, ProcessGone
from trimtab_server.processes.together import Loaded, Together


def test_a_reserved_port_is_taken_for_others_and_free_for_its_own() -> None:
    reserved, address = ports.reserve("127.0.0.1:0")
    try:
        with pytest.raises(ConfigError, match="in use"):
            ports.reserve(address)
        port = int(address.rpartition(":")[2])
        with socket.socket() as one, socket.socket() as two:  # as gRPC does with so_reuseport
            for each in (one, two):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                each.bind(("127.0.0.1", port))
                each.listen()
            with pytest.raises(ConfigError, match="in use"):
                ports.reserve(address)
    finally:
        for each in reserved:
            each.close()
    again, _ = ports.reserve(address)
    for each in again:
        each.close()


def test_a_port_that_another_server_listens_on_is_refused() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        with pytest.raises(ConfigError, match="in use"):
            ports.reserve(f"127.0.0.1:{listening.getsockname()[1]}")


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_process_ends_with_the_one_that_started_it(before: bool) -> None:
    """Whether that one ends before or after the process holds its lifeline."""
    read, write = os.pipe()
    code = (
        "import sys, time\n"
        "from trimtab_server import lifeline\n"
        "sys.stdin.readline()\n"
        f"lifeline.hold({read})\n"
        "print('held', flush=True)\n"
        "time.sleep(300)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=(read,),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        os.close(read)
        assert process.stdin is not None and process.stdout is not None
        if before:
            os.close(write)
        process.stdin.write("\n")
        process.stdin.flush()
        if not before:
            assert process.stdout.readline() == "held\n"
            os.close(write)
        assert process.wait(60) == (1 if before else -signal.SIGKILL)


async def test_peers_ask_each_other() -> None:
    async def doubled(value: bytes) -> Any:
        return 2 * msgspec.msgpack.decode(value, type=int)

    async def refused(value: bytes) -> Any:
        raise NotFound("there is no such thing", 1.5)

    async def broken(value: bytes) -> Any:
        raise KeyError("a secret")

    async def never(value: bytes) -> Any:
        await asyncio.Event().wait()

    one, other = socket.socketpair()
    asked = Peer({"doubled": doubled, "refused": refused, "broken": broken, "never": never})
    peer = Peer({"doubled": doubled})
    await asyncio.gather(asked.open(one), peer.open(other))
    assert await asyncio.gather(*(peer.get(int, "doubled", each) for each in range(5))) == [0, 2, 4, 6, 8]
    assert await asked.get(int, "doubled", 21) == 42
    with pytest.raises(NotFound, match="no such thing") as caught:
        await peer.ask("refused")
    assert caught.value.retry_after == 1.5
    with pytest.raises(InternalError) as hidden:
        await peer.ask("broken")
    assert "secret" not in str(hidden.value)
    with pytest.raises(InternalError, match="nobody answers 'unheard of'"):
        await peer.ask("unheard of")
    waiting = asyncio.create_task(peer.ask("never"))
    await asyncio.sleep(0)
    await asked.close()
    with pytest.raises(ProcessGone):
        await waiting
    with pytest.raises(ProcessGone):
        await peer.ask("doubled", 1)


class Process:
    """The metrics of a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.texts = Counter("trimtab_texts", "Texts.", ["version"], registry=self.registry)
        self.ready = Gauge("trimtab_encoder_ready", "Ready.", ["version"], registry=self.registry)
        self.alarm = Gauge("trimtab_query_drift_alarm", "Alarm.", registry=self.registry)


def test_merged_metrics_are_those_of_one_server() -> None:
    one, two, merged, registry = Process(), Process(), MergedMetrics(), CollectorRegistry()
    registry.register(merged)

    def value(name: str, **labels: str) -> float | None:
        merged.put("one", collected(one.registry))
        merged.put("two", collected(two.registry))
        found: float | None = registry.get_sample_value(name, labels)
        return found

    one.texts.labels("1").inc(3)
    two.texts.labels("1").inc(4)
    assert value("trimtab_texts_total", version="1") == 7
    one.ready.labels("1").set(1)
    two.ready.labels("2").set(1)
    assert value("trimtab_encoder_ready", version="1") == 0, "one front end does not have it"
    two.ready.labels("1").set(1)
    assert value("trimtab_encoder_ready", version="1") == 1
    two.alarm.set(1)
    assert value("trimtab_query_drift_alarm") == 1
    # A process ends, and another takes its place: what it counted stays.
    merged.gone("one")
    one = Process()
    assert value("trimtab_texts_total", version="1") == 7
    one.texts.labels("1").inc()
    assert value("trimtab_texts_total", version="1") == 8
    # A version is removed, by one process after the other: no sum is told that falls on the way.
    one.texts.remove("1")
    assert value("trimtab_texts_total", version="1") is None
    two.texts.remove("1")
    assert value("trimtab_texts_total", version="1") is None
    one.texts.labels("1").inc(5)
    assert value("trimtab_texts_total", version="1") == 5


class FrontEnd:
    """A front end that loads and unloads by name, and remembers what it was asked."""

    def __init__(self, *served: str) -> None:
        self.name, self.runs = "a front end", True
        self.served = {(name, 1, "space") for name in served}
        self.asked: list[tuple[str, str]] = []

    async def get(self, kind: type[Loaded], what: str, encoder: str) -> Loaded:
        self.asked.append((what, encoder))
        (self.served.add if what == "load" else self.served.discard)((encoder, 1, "space"))
        return Loaded(sorted(self.served))


async def test_what_was_unloaded_before_a_front_end_begins_stays_unloaded() -> None:
    one, late = FrontEnd("kept", "gone"), FrontEnd("kept")
    front_ends: dict[int, Any] = {1: one}
    together = Together(front_ends)
    together.joined(one, sorted(one.served))  # type: ignore[arg-type]
    await together.unload_for(msgspec.msgpack.encode("gone"))
    assert together.unloaded == {"gone"}
    front_ends[2] = late
    async with together.alone():
        together.joined(late, sorted(late.served))  # type: ignore[arg-type]
        await together.agree()
    assert one.asked == [("unload", "gone")] and not late.asked
    # One that finds another encoder on disk makes all load it.
    found = FrontEnd("kept", "new")
    front_ends[3] = found
    async with together.alone():
        together.joined(found, sorted(found.served))  # type: ignore[arg-type]
        await together.agree()
    assert ("load", "new") in one.asked and one.served == late.served == found.served
