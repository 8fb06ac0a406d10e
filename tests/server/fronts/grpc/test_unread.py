"""Clients that do not read their answers fill what they may, and nobody else's room; they are hung up on."""

import contextlib
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import trimtab
from bench.chaos import attacks
from tests.server.server_process import ServerProcess, serve
from trimtab.errors import ResourceExhausted
from trimtab.v1 import encoder_pb2 as pb
from trimtab_server.fronts.grpc import sockets
from trimtab_server.fronts.grpc.unread import COPIES, PATIENCE_SECONDS, Unread, UnreadAnswers

TEXTS = ["a"] * 200
ANSWER = COPIES * (len(TEXTS) * 384 * 4 + 1000)  # as it is held, with the request
LIMIT = 16 * ANSWER  # a quarter is four
# Of the client's SETTINGS: its window for answers is of no bytes.
NO_WINDOW = b"\x00\x04" + bytes(4)
WAIT = 60.0


@contextmanager
def silent(url: str, path: str, calls: int) -> Iterator[socket.socket]:
    """A connection with so many calls whose answers may not be sent. gRPC's own clients always read."""
    request = pb.EmbedRequest(texts=TEXTS)
    message = request if path == attacks.EMBED else pb.EmbedStreamRequest(id=1, request=request)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as connection:
        connection.sendall(attacks.PREFACE + attacks.frame(attacks.SETTINGS, 0, 0, NO_WINDOW))
        for stream in range(1, 2 * calls, 2):
            head, data = attacks.headers(path), attacks.message(message.SerializeToString())
            connection.sendall(
                attacks.frame(attacks.HEADERS, attacks.END_HEADERS, stream, head)
                + attacks.frame(attacks.DATA, attacks.END_STREAM, stream, data)
            )
        connection.settimeout(WAIT)
        yield connection


def end(connection: socket.socket) -> bool:
    """Whether the server ended the connection, which is waited for."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass
    return True


@pytest.mark.parametrize("path", [attacks.EMBED, attacks.STREAM])
def test_answers_that_nobody_reads_are_bounded(path: str, minilm_repository: Path, tmp_path: Path) -> None:
    """limits.max_unread_bytes: by connection, and for all of them together, where the slowest make room."""
    with serve(minilm_repository, tmp_path, f"[limits]\nmax_unread_bytes = {LIMIT}\n") as server:
        with silent(server.url, path, calls=6) as connection:
            said = b""
            while b"max_unread_bytes" not in said:  # the status of a call that was refused
                received = connection.recv(1 << 16)
                assert received, "the connection was closed"
                said += received
            with trimtab.Client(server.url, timeout=100) as client:
                assert client.embed(TEXTS).shape == (len(TEXTS), 384)
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(silent(server.url, path, calls=6))
            assert served(server) == 20


def served(server: ServerProcess) -> int:
    """How many calls of a client that reads were answered, from the first on."""
    until, count = time.monotonic() + WAIT, 0
    with trimtab.Client(server.url, timeout=100) as client:
        while count < 20 and time.monotonic() < until:
            try:
                client.embed(TEXTS)
                count += 1
            except ResourceExhausted:
                assert not count, "there was room, and it went"
    return count


def test_who_takes_no_answer_within_the_time_is_hung_up_on(minilm_repository: Path, tmp_path: Path) -> None:
    """limits.max_unread_seconds; what was kept for it is free again."""
    config = f"[limits]\nmax_unread_bytes = {LIMIT}\nmax_unread_seconds = 1\n"
    with serve(minilm_repository, tmp_path, config) as server:
        for _ in range(6):  # of which four would be too much
            with silent(server.url, attacks.EMBED, calls=3) as connection:
                assert end(connection)
        assert served(server) == 20
    assert sum("closed the connection of ipv4:127.0.0.1" in line for line in server.log) == 6


class Room:
    """An Unread under a clock that a test turns; `ended`: who was hung up on."""

    def __init__(self, limit: int) -> None:
        self.now, self.ended, self.reachable = 0.0, list[str](), True
        self.unread = Unread(limit, 60.0, self.hang_up, lambda: self.now)

    def hang_up(self, peers: Collection[str]) -> Collection[str]:
        self.ended += peers
        return peers if self.reachable else ()

    def call(self, tenant: str, peer: str, size: int) -> UnreadAnswers:
        """A call with an answer of which so much is held."""
        account = self.unread.account(tenant, peer)
        account.add(size // 2)  # and its copy
        account.send()
        return account


def test_what_is_unread_is_counted_until_it_is_read_or_the_call_is_over() -> None:
    room = Room(900)
    one, other = room.unread.account("", "a"), room.unread.account("", "b")
    one.add(500)  # alone, an answer may have any size
    assert room.unread.bytes == COPIES * 500
    with pytest.raises(ResourceExhausted, match="all connections"):
        other.add(1)
    with one.sending(500):
        pass
    one.add(50)
    one.add(50)
    with pytest.raises(ResourceExhausted, match="this connection"):
        one.add(50)
    other.add(50)
    one.close()
    assert room.unread.bytes == 100
    other.close()
    assert room.unread.bytes == 0 and not room.ended


def test_a_connection_that_was_refused_is_refused_before_anything_is_done_until_it_reads() -> None:
    room = Room(900)
    held = room.call("", "a", 200)
    room.unread.check("", "a")  # it may go on
    with pytest.raises(ResourceExhausted, match="this connection"):
        room.call("", "a", 200)
    for _ in range(2):
        with pytest.raises(ResourceExhausted, match="this connection"):
            room.unread.check("", "a")
    room.unread.check("", "b")
    held.close()
    room.unread.check("", "a")
    assert room.unread.bytes == 0


def test_each_connection_holds_a_part_of_what_is_left_and_a_tenant_leaves_some_for_others() -> None:
    room = Room(9000)
    held = []
    for peer in range(100):
        with contextlib.suppress(ResourceExhausted):
            while True:
                held.append(room.call("flood", str(peer), 50))
    assert 0.85 * 9000 < room.unread.bytes <= 8000
    room.call("another", "x", 500).close()
    with pytest.raises(ResourceExhausted, match="your tenant's connections"):
        room.call("flood", "newcomer", 500)
    assert not room.ended  # yet
    room.now += 2 * PATIENCE_SECONDS
    room.call("another", "x", 100)  # which there is room for
    assert not room.ended
    room.call("flood", "newcomer", 500)
    assert room.ended and room.unread.bytes < 0.6 * 9000
    for each in held:
        each.close()
    assert room.unread.bytes == 600


def test_the_slowest_of_the_largest_tenant_make_room_first() -> None:
    room = Room(1000)
    small = room.call("small", "patient", 50)
    for number, peer in enumerate(("oldest", "older", "old")):
        room.now = 1.0 + number
        room.call("large", peer, 200)
    room.now = 1.5 + PATIENCE_SECONDS + 1
    reader = room.unread.account("small", "reader")
    reader.add(50)
    with reader.sending(0):
        pass  # it takes what it gets
    room.call("third", "new", 300)
    assert room.ended == ["oldest", "older"]
    assert room.unread.bytes == 50 + 200 + 100 + 300
    small.close()


def test_who_takes_an_answer_in_time_stays() -> None:
    room = Room(1000)
    reader, sleeper = room.unread.account("", "reader"), room.call("", "sleeper", 10)
    for _ in range(3):
        reader.add(5)
        reader.send()
        with reader.sending(0):
            room.now += 50
        room.unread.end_slow()
    assert room.ended == ["sleeper"]
    sleeper.close()
    assert room.unread.bytes == 30


def test_who_cannot_be_hung_up_on_goes_on_counting_and_is_not_looked_for_again() -> None:
    room = Room(1000)
    room.reachable = False
    room.call("", "unix:", 900)
    room.now = 100.0
    for _ in range(3):
        room.unread.end_slow()
        with pytest.raises(ResourceExhausted):
            room.call("other", "b", 200)
    assert room.ended == ["unix:"] and room.unread.bytes == 900


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")])
def test_a_peer_is_hung_up_on_and_nobody_else(family: socket.AddressFamily, host: str) -> None:
    """Also one of IPv4 at a port of IPv6, as gRPC listens at [::]."""
    with socket.socket(family) as listener:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with contextlib.ExitStack() as stack:
            ends = []
            for _ in range(3):
                ends.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)))
                stack.enter_context(listener.accept()[0])
            peers = [f"ipv4:127.0.0.1:{each.getsockname()[1]}" for each in ends]
            assert sockets.hang_up([peers[1], "unix:", "ipv6:%5B::1%5D:9", "nonsense"]) == {peers[1]}
            assert ends[1].recv(1) == b""
            for each in (ends[0], ends[2]):
                each.setblocking(False)
                with pytest.raises(BlockingIOError):
                    each.recv(1)
