"""A client that does not read its answers fills what it may, and nobody else's memory."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import trimtab
from bench.chaos import attacks
from tests.serve.server_process import serve
from trimtab.errors import ResourceExhausted
from trimtab.v1 import encoder_pb2 as pb
from trimtab_server.rpc.unread import Unread

TEXTS = ["a"] * 1000
ANSWER = len(TEXTS) * 384 * 4
# Of the client's SETTINGS: its window for answers is of no bytes.
NO_WINDOW = b"\x00\x04" + bytes(4)


@contextmanager
def silent(url: str, path: str, message: bytes, calls: int) -> Iterator[socket.socket]:
    """A connection with so many calls whose answers may not be sent. gRPC's own clients always read."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as connection:
        connection.sendall(attacks.PREFACE + attacks.frame(attacks.SETTINGS, 0, 0, NO_WINDOW))
        for stream in range(1, 2 * calls, 2):
            head, data = attacks.headers(path), attacks.message(message)
            connection.sendall(
                attacks.frame(attacks.HEADERS, attacks.END_HEADERS, stream, head)
                + attacks.frame(attacks.DATA, attacks.END_STREAM, stream, data)
            )
        connection.settimeout(60)
        yield connection


@pytest.mark.parametrize("path", [attacks.EMBED, attacks.STREAM])
def test_answers_that_nobody_reads_are_bounded(path: str, minilm_repository: Path, tmp_path: Path) -> None:
    """limits.max_unread_bytes."""
    request = pb.EmbedRequest(texts=TEXTS)
    message = request if path == attacks.EMBED else pb.EmbedStreamRequest(id=1, request=request)
    config = f"[limits]\nmax_unread_bytes = {5 * 4 * ANSWER}\n"  # a connection holds four
    with serve(minilm_repository, tmp_path, config) as server:
        with silent(server.url, path, message.SerializeToString(), calls=6) as connection:
            said = b""
            while b"max_unread_bytes" not in said:  # the status of a call that was refused
                received = connection.recv(1 << 16)
                assert received, "the connection was closed"
                said += received
            with trimtab.Client(server.url, timeout=100) as client:
                assert client.embed(TEXTS).shape == (1000, 384)


def test_what_is_unread_is_counted_until_it_is_read_or_the_call_is_over() -> None:
    unread = Unread(400)
    one, other = unread.account("a"), unread.account("b")
    one.add(1000)  # alone, an answer may have any size
    with pytest.raises(ResourceExhausted, match="this connection"):
        one.add(1)
    with pytest.raises(ResourceExhausted, match="all connections"):
        other.add(1)
    one.remove(1000)
    one.add(60)
    with pytest.raises(ResourceExhausted, match="this connection"):
        unread.account("a").add(60)
    other.add(60)
    one.close()
    unread.account("a").add(100)
    other.close()
    assert unread.bytes == 100
    assert dict(unread.by_peer) == {"a": 100}
