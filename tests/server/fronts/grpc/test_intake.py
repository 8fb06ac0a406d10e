"""Open calls and their messages are bounded altogether, and who holds most makes room; sans-IO."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from trimtab.errors import ResourceExhausted
from trimtab_server.callers.access import ANYONE
from trimtab_server.fronts.grpc import arriving
from trimtab_server.fronts.grpc.arriving import IN_ADVANCE_BYTES, MESSAGE_BYTES, Arriving
from trimtab_server.fronts.grpc.intake import Intake, OpenCall
from trimtab_server.fronts.grpc.senders import Sender
from trimtab_server.fronts.grpc.sockets import Connections


def intake(max_calls: int = 4, max_bytes: int = 100) -> Intake:
    return Intake(max_calls, max_bytes, Arriving(max_bytes))


class Context:
    """As much of gRPC's as an open call asks of it."""

    def time_remaining(self) -> None:
        return None


CONTEXT: Any = Context()


def opened(room: Intake, name: str) -> OpenCall:
    return room.open(ANYONE, Sender("", name), CONTEXT)


def test_whoever_has_most_calls_makes_room_for_the_others() -> None:
    room = intake(max_calls=4)
    many = [opened(room, "many") for _ in range(4)]
    with pytest.raises(ResourceExhausted, match=r"limits\.max_calls"):
        opened(room, "many")
    assert opened(room, "few").error is None
    assert [call.error is not None for call in many] == [False, False, False, True]  # the latest
    assert opened(room, "few").error is None
    assert room.calls == 4
    with pytest.raises(ResourceExhausted, match="try again"):
        opened(room, "few")  # two and two
    for call in (*many, *many):  # over, whether they were ended or not, and once
        room.close(call)
    assert room.calls == 2


def test_whoever_holds_most_bytes_makes_room_for_the_others() -> None:
    room = intake(max_calls=10, max_bytes=100)
    first, second, idle = (opened(room, "large") for _ in range(3))
    first.hold(50)
    second.hold(40)
    small = opened(room, "small")
    small.hold(20)
    assert second.error is not None and first.error is None and idle.error is None
    assert room.bytes == 70
    with pytest.raises(ResourceExhausted, match=r"limits\.max_received_bytes"):
        small.hold(40)
    second.release(40)  # it was ended: nothing is released twice
    assert room.bytes == 70
    first.release(50)
    small.hold(80)
    room.close(small)
    room.close(first)
    room.close(idle)
    assert (room.bytes, room.calls) == (0, 0)


async def test_a_call_that_is_ended_is_told_why() -> None:
    room = intake(max_calls=2)
    told: list[str] = []
    begun = asyncio.Event()

    async def work() -> None:
        call = room.open(ANYONE, Sender("", "large"), CONTEXT, asyncio.current_task())
        try:
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if (error := call.ended()) is None:
                raise
            await asyncio.sleep(0)  # it goes on as a task that was not cancelled
            told.append(str(error))
        finally:
            room.close(call)

    opened(room, "large")
    task = asyncio.create_task(work())
    await begun.wait()
    opened(room, "small")
    await task
    assert len(told) == 1 and "limits.max_calls" in told[0]
    room.max_calls += 1
    begun.clear()
    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()  # by its client
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(told) == 1 and room.calls == 2


@dataclass(eq=False)
class Reader:
    most: int = 0
    error: ResourceExhausted | None = None

    def end(self, error: ResourceExhausted) -> None:
        self.error = error


@dataclass
class Network:
    """What each connection has received, as the system would tell."""

    totals: dict[str, int] = field(default_factory=dict)

    def received(self, peers: Collection[str]) -> Mapping[str, int]:
        return {peer: self.totals[peer] for peer in peers}


def test_the_connection_that_has_sent_most_of_messages_that_are_not_whole_is_ended() -> None:
    network = Network({"a": 10**9, "b": 10**9})
    wasted = dict[str, int]()
    on_way = Arriving(MESSAGE_BYTES + 99, lambda: 0, network.received, refused=wasted.__setitem__)
    one, two, other = Reader(), Reader(), Reader()
    on_way.began("a", one)
    on_way.began("a", two)
    on_way.began("b", other)
    on_way.look()  # what came before is nobody's concern
    network.totals["a"] += MESSAGE_BYTES - 10_000
    network.totals["b"] += 1000
    on_way.look()
    assert (one.error, two.error, other.error) == (None, None, None)
    network.totals["a"] += 20_000
    on_way.look()
    assert one.error is not None and "limits.max_received_bytes" in str(one.error)
    assert two.error is not None and other.error is None
    assert wasted == {"a": MESSAGE_BYTES}  # it may mean well


def test_a_message_that_is_longer_than_its_call_takes_is_ended_before_it_is_whole() -> None:
    network, wasted = Network({"long": 0, "right": 0, "stream": 0}), dict[str, int]()
    on_way = Arriving(10**9, lambda: 0, network.received, refused=wasted.__setitem__)
    readers = {"long": Reader(1 << 20), "right": Reader(4 << 20), "stream": Reader()}
    for peer, reader in readers.items():
        on_way.began(peer, reader)
    on_way.look()
    came = (1 << 20) + IN_ADVANCE_BYTES + 1
    for peer in readers:
        network.totals[peer] += came
    on_way.look()
    ended = {peer for peer, reader in readers.items() if reader.error is not None}
    assert ended == {"long"} and "limits.max_message_bytes" in str(readers["long"].error)
    assert wasted == {"long": came}


def test_what_comes_beside_messages_does_not_add_up_to_one_that_is_too_long() -> None:
    """A gateway's connection always has some call that waits, and headers come with each."""
    network = Network({"gateway": 0})
    on_way = Arriving(10**9, lambda: 0, network.received)
    before, idle = Reader(1 << 20), Reader()
    on_way.began("gateway", before)
    for number in range(3 * IN_ADVANCE_BYTES >> 13):
        after = Reader(1 << 20)
        on_way.began("gateway", after)
        network.totals["gateway"] += 1024 + 8192
        on_way.ended("gateway", before, 1)
        if number % 2:
            on_way.look()
        before = after
        assert before.error is None
    on_way.began("gateway", idle)  # a stream, which may get a message of any call's size
    network.totals["gateway"] += 2 * IN_ADVANCE_BYTES
    on_way.look()
    assert before.error is None and idle.error is None


def test_messages_that_are_whole_are_not_on_their_way_any_more() -> None:
    network = Network({"a": 0})
    on_way = Arriving(1000_000, lambda: 0, network.received)
    waiting, busy = Reader(), Reader()
    on_way.began("a", waiting)  # a stream that is open for long
    for _ in range(100):
        on_way.began("a", busy)
        network.totals["a"] += 900_000 + 1000  # with what is beside it
        on_way.look()
        on_way.ended("a", busy, 900_000)
    on_way.look()
    assert waiting.error is None and busy.error is None
    # That more was allowed for than it took is not saved up.
    on_way.began("a", busy)
    network.totals["a"] += 1_002_000
    on_way.look()
    assert busy.error is not None


def test_the_system_tells_what_a_connection_has_received() -> None:
    import socket

    sockets = Connections()
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        with socket.create_server((host, 0), family=family) as listener:
            with (
                socket.create_connection(listener.getsockname()[:2]) as client,
                listener.accept()[0] as server,
            ):
                port = client.getsockname()[1]
                peer = f"ipv4:{host}:{port}" if family == socket.AF_INET else f"ipv6:%5B{host}%5D:{port}"
                for total in (1000, 2000):
                    client.sendall(bytes(1000))
                    assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
                    assert sockets.received([peer, "unix:", "ipv4:127.0.0.1:1"]) == {peer: total}
            assert sockets.received([peer]) == {}


async def test_it_is_looked_at_as_soon_as_the_process_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "LOOK_SECONDS", 1e9)
    network, memory = Network({"a": 0}), [0]
    on_way = Arriving(1000_000, lambda: memory[0], network.received)
    reader = Reader()
    watching = asyncio.create_task(on_way.watch())
    on_way.began("a", reader)
    memory[0] = arriving.GROWTH_BYTES
    async with asyncio.timeout(60):
        while reader.error is None:
            await asyncio.sleep(0)
            network.totals["a"] += 10_000
            memory[0] += arriving.GROWTH_BYTES
    watching.cancel()
