"""Idle connections make room for those who come, before all places are taken; calls keep theirs."""

import asyncio
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_server.config import Config, LimitSettings
from trimtab_server.fronts.grpc import listeners, newcomers, sockets
from trimtab_server.fronts.grpc.newcomers import IDLE_SECONDS, UNUSED_SECONDS, Newcomers, longest_idle
from trimtab_server.fronts.grpc.sockets import Address


def at(host: int, port: int) -> Address:
    return ipaddress.IPv4Address(host), port


@given(
    st.dictionaries(
        st.builds(at, st.integers(1, 4), st.integers(1, 50)), st.none() | st.floats(0, 100), max_size=40
    ),
    st.integers(0, 40),
)
def test_only_idle_ones_go_and_no_more_than_must(there: dict[Address, float | None], most: int) -> None:
    idle = {each: since for each, since in there.items() if since is not None}
    chosen = longest_idle(there, idle, most)
    assert len(chosen) == len(set(chosen)) == min(max(0, len(there) - most), len(idle))
    assert idle.keys() >= set(chosen)


def test_the_longest_idle_of_the_host_that_has_most_goes_first() -> None:
    crowd = {at(1, port): 50.0 + port for port in range(5)}
    few = {at(2, 1): 10.0, at(2, 2): 11.0}
    there = crowd | few
    assert longest_idle(there, there, 4) == [at(1, 0), at(1, 1), at(1, 2)]
    assert longest_idle(there, few, 4) == [at(2, 1), at(2, 2)]  # of the crowd, each has a call
    assert longest_idle(there, there, 7) == []


def test_who_has_had_a_call_lately_or_has_just_come_is_not_idle() -> None:
    now, there, used, closed = 100.0, [at(1, port) for port in range(32)], {at(1, 0)}, []
    files = 20
    room = Newcomers(32, lambda: files, lambda: there, lambda: used, closed.extend, lambda: now)
    room.look()  # there cannot be as many
    now, files = now + 10, 40
    room.look()
    assert not closed
    now += UNUSED_SECONDS - 0.1
    room.look()
    assert not closed
    now += 0.2
    used = set()
    room.look()
    assert len(closed) == 2 and at(1, 0) not in closed  # 30 of 32 are taken then
    there, closed[:] = [at(1, 0), *(at(2, port) for port in range(31))], []
    now += IDLE_SECONDS - 0.3
    room.look()  # those of host 2 have just come, and the other had a call less than 5 s ago
    assert not closed
    now += 0.2
    used = set(there[1:])
    room.look()
    assert closed == [at(1, 0)]


async def test_a_full_port_has_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "UNUSED_SECONDS", 0.0)
    monkeypatch.setattr(newcomers, "LOOK_SECONDS", 0.01)
    server = listeners.make(Config(limits=LimitSettings(max_connections=16)), [])
    port = listeners.bind(server, "127.0.0.1:0", None)
    await server.start()
    room = Newcomers(16, sockets.open_files, lambda: sockets.connected(port), set, sockets.shut_down)
    watching = asyncio.create_task(room.watch())
    idle = []
    try:
        async with asyncio.timeout(60):
            for _ in range(40):
                while True:  # a connection that is turned away is closed before it has said anything
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    idle.append(writer)
                    if await reader.read(9):
                        break
            assert len(sockets.connected(port)) <= 16
    finally:
        watching.cancel()
        for writer in idle:
            writer.close()
        await server.stop(0)
