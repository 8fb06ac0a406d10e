"""Misbehaving clients. Each returns after a bounded time, and holds a bounded number of connections.

All talk to a server on the loopback, most of them in hand-made bytes; RFC 9113 defines the frames.
"""

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from bench.chaos import known
from trimtab.v1 import encoder_pb2 as pb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
EMBED = "/trimtab.v1.EncoderService/Embed"
STREAM = "/trimtab.v1.EncoderService/EmbedStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """An HTTP/2 frame; `length` overrides the true one."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def headers(path: str, **more: str) -> bytes:
    """A request's headers, as literals that are not indexed."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
        "te": "trailers", "content-type": "application/grpc", **more,
    }  # fmt: skip
    return b"".join(
        bytes((0, len(name))) + name.encode() + _length(len(value)) + value.encode()
        for name, value in fields.items()
    )


def _length(number: int) -> bytes:
    if number < 127:
        return bytes((number,))
    number, rest = number - 127, bytearray((127,))
    while number >= 128:
        rest.append(number % 128 + 128)
        number //= 128
    return bytes((*rest, number))


def message(content: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A message in gRPC's framing; `length` overrides the true one."""
    return bytes((compressed,)) + (len(content) if length is None else length).to_bytes(4, "big") + content


@contextlib.contextmanager
def connected(port: int, *, seconds: float = 5.0) -> Iterator[socket.socket]:
    """A connection that has sent nothing."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), seconds) as connection:
        yield connection


def _say(port: int, parts: Iterable[bytes], *, listen: float = 0.2) -> None:
    with connected(port) as connection, contextlib.suppress(OSError):
        connection.settimeout(listen)
        for part in parts:
            connection.sendall(part)
        while connection.recv(1 << 16):
            pass


def call(port: int, path: str, content: bytes = b"") -> None:
    """A call of any path, until it or its connection ends."""
    _say(
        port,
        [
            PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, headers(path)),
            frame(DATA, END_STREAM, 1, message(content)),
        ],
    )


def conversations(rng: random.Random) -> dict[str, list[bytes]]:
    """What malformed clients send, by what is wrong with it."""
    begun = PREFACE + frame(SETTINGS, 0, 0)
    opened = begun + frame(HEADERS, END_HEADERS, 1, headers(EMBED))
    request = pb.EmbedRequest(texts=[known.text(1)], encoder=known.NAME).SerializeToString()
    noise = rng.randbytes(rng.randint(1, 4000))
    flipped = bytearray(request)
    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    kinds = [rng.randint(0, 12) for _ in range(30)]
    return {
        "noise": [noise],
        "HTTP/1.1": [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"],
        "half a preface": [PREFACE[: rng.randrange(len(PREFACE))]],
        "noise behind the preface": [PREFACE, noise],
        "frames of noise": [
            begun, *(frame(kind, rng.randint(0, 255), rng.randint(0, 9), rng.randbytes(9)) for kind in kinds)
        ],
        "a frame that is longer than it says": [begun, frame(HEADERS, END_HEADERS, 1, headers(EMBED), 3)],
        "a frame of 16 MB": [begun, frame(DATA, 0, 1, b"", (1 << 24) - 1), noise],
        "headers of noise": [begun, frame(HEADERS, END_HEADERS, 1, noise[:1000])],
        "headers of 1 MB": [
            begun, frame(HEADERS, 0, 1, headers(EMBED)),
            *(frame(CONTINUATION, 0, 1, headers("", **{"x": "a" * 9000})[-9000:]) for _ in range(110)),
        ],
        "a message that is longer than it says": [
            opened, frame(DATA, END_STREAM, 1, message(request, length=3))
        ],
        "a message of 4 GB": [opened, frame(DATA, 0, 1, message(request, length=(1 << 32) - 1))],
        "half a message": [opened, frame(DATA, END_STREAM, 1, message(request)[:-3])],
        "compressed by nothing": [opened, frame(DATA, END_STREAM, 1, message(request, compressed=1))],
        "a message with a bit flipped": [opened, frame(DATA, END_STREAM, 1, message(bytes(flipped)))],
        "a message of noise": [opened, frame(DATA, END_STREAM, 1, message(noise))],
        "another method": [
            begun, frame(HEADERS, END_HEADERS, 1, headers("/no/such")),
            frame(DATA, END_STREAM, 1, message(request)),
        ],
        "a timeout of noise": [
            begun, frame(HEADERS, END_HEADERS, 1, headers(EMBED, **{"grpc-timeout": "9999999999999H"})),
            frame(DATA, END_STREAM, 1, message(request)),
        ],
        "calls that are reset at once": [
            begun,
            *(
                frame(HEADERS, END_HEADERS, number, headers(EMBED))
                + frame(DATA, END_STREAM, number, message(request))
                + frame(RST, 0, number, (8).to_bytes(4, "big"))
                for number in range(1, 400, 2)
            ),
        ],
        "settings and pings": [begun, (frame(SETTINGS, 0, 0) + frame(PING, 0, 0, bytes(8))) * 2000],
        "windows of nothing": [
            PREFACE + frame(SETTINGS, 0, 0, b"\x00\x04" + bytes(4)),
            *(
                frame(HEADERS, END_HEADERS, number, headers(STREAM))
                + frame(DATA, 0, number, message(pb.EmbedStreamRequest(id=1).SerializeToString()))
                for number in range(1, 200, 2)
            ),
        ],
    }  # fmt: skip


def malformed(port: int, seconds: float, seed: int) -> int:
    """Send every kind of malformed bytes, repeatedly; returns the number of connections."""
    rng, until = random.Random(seed), time.monotonic() + seconds
    for count in itertools.count():
        every = list(conversations(rng).values())
        for number, parts in enumerate(every):
            if time.monotonic() > until and count:
                return count * len(every) + number
            _say(port, parts, listen=0.02)
    raise AssertionError


def flood(port: int, connections: int, seconds: float) -> int:
    """Open this many connections that send little or nothing; returns how many were accepted."""
    with contextlib.ExitStack() as stack:
        had = []
        for number in range(connections):
            with contextlib.suppress(OSError):
                connection = stack.enter_context(socket.socket())
                connection.settimeout(0.5)
                connection.connect(("127.0.0.1", port))
                if number % 2:  # every other one looks like a client
                    connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
                had.append(connection)
        time.sleep(seconds)
        return len(had)


def _frozen(port: int, until: float, texts: int) -> None:
    """One stream that asks for much and never reads its answers."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    over = threading.Event()

    def messages() -> Iterator[bytes]:
        for number in range(texts):
            if over.is_set() or time.monotonic() > until:
                return
            request = pb.EmbedRequest(texts=[known.text(number)] * 32, encoder=known.NAME)
            yield pb.EmbedStreamRequest(id=number, request=request).SerializeToString()
        over.wait(max(0.0, until - time.monotonic()))

    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        send: Any = channel.stream_stream(STREAM)
        call = send(messages())
        over.wait(max(0.0, until - time.monotonic()))
        over.set()
        call.cancel()


def slow_readers(port: int, readers: int, seconds: float) -> None:
    """Streams that send and never read, each on its own connection."""
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=_frozen, args=(port, until, 20_000)) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def huge(port: int, seconds: float) -> int:
    """Requests at and beyond every size limit; returns how many."""
    until, count = time.monotonic() + seconds, 0
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
    requests = [
        ["w1 " * 80_000] * 17,  # near the message's limit
        ["w1 " * 400_000],  # beyond a text's
        ["w1"] * 5000,  # beyond the number of texts
        ["w1 " * 20_000] * 500,  # beyond the message's
    ]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call: Any = channel.unary_unary(EMBED)
        while time.monotonic() < until:
            for texts in requests:
                content = pb.EmbedRequest(texts=texts, encoder=known.NAME).SerializeToString()
                with contextlib.suppress(grpc.RpcError):
                    call(content, timeout=5)
                count += 1
    return count
