"""Finds the sockets beneath gRPC's connections, for what gRPC's servers neither do nor report.

To gRPC, a socket that is shut down is a connection that has ended: it cancels the calls, and frees their
memory.
"""

import contextlib
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

# Every open file of this process, on Linux and elsewhere.
FILES = Path("/dev/fd")

# Linux's tcp_info: its size, and the offset of the number of received bytes.
TCP_INFO_BYTES, RECEIVED_AT = 192, 128

Address: TypeAlias = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


class Connections:
    """Finds the open files of peers' connections, and remembers them."""

    def __init__(self) -> None:
        self._files: dict[Address, int] = {}

    def received(self, peers: Collection[str]) -> dict[str, int]:
        """How many bytes each peer's connection has received since it was opened.

        Peers that are not found are left out; all are, if the system does not tell.
        """
        if not hasattr(socket, "TCP_INFO"):
            return {}
        wanted = {peer: address for peer in peers if (address := named(peer)) is not None}
        if not self._files.keys() >= set(wanted.values()):
            self._find()
        found = {peer: self._received(address) for peer, address in wanted.items()}
        return {peer: count for peer, count in found.items() if count is not None}

    def _received(self, address: Address) -> int | None:
        file = self._files.get(address)
        with contextlib.suppress(OSError):
            if file is not None:
                with _duplicate(file) as connection:
                    if _address(*connection.getpeername()[:2]) == address:  # not reused by another peer
                        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
                        return int(struct.unpack_from("Q", info, RECEIVED_AT)[0])
        self._files.pop(address, None)
        return None

    def _find(self) -> None:
        self._files.clear()
        for file in FILES.iterdir():
            with contextlib.suppress(OSError), _duplicate(int(file.name)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    self._files[_address(*connection.getpeername()[:2])] = int(file.name)


def hang_up(peers: Collection[str]) -> set[str]:
    """Shut down the connections of peers, and return those that were found.

    Peers are named as gRPC names them: "ipv4:127.0.0.1:5" or "ipv6:%5B::1%5D:5". Others, such as "unix:",
    have no address, and are never found.
    """
    wanted = {address: peer for peer in peers if (address := named(peer)) is not None}
    return {wanted[address] for address in shut_down(wanted.keys())}


def shut_down(addresses: Collection[Address]) -> set[Address]:
    """Shut down the connections of these peers, and return those that were found."""
    found: set[Address] = set()
    for connection in _open() if addresses else ():
        address = _address(*connection.getpeername()[:2])
        if address in addresses:
            connection.shutdown(socket.SHUT_RDWR)
            found.add(address)
    return found


def open_files() -> int:
    """How many files this process has open, including connections."""
    return sum(1 for _ in FILES.iterdir())


def connected(port: int) -> list[Address]:
    """The peers connected to one of our ports."""
    return [
        _address(*connection.getpeername()[:2])
        for connection in _open()
        if connection.getsockname()[1] == port
    ]


def _open() -> Iterator[socket.socket]:
    """Every open TCP connection, by a socket that is closed after each step of the loop."""
    for file in FILES.iterdir():
        with contextlib.suppress(OSError), _duplicate(int(file.name)) as connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.getpeername()  # OSError if it is not connected
                yield connection


def _duplicate(file: int) -> socket.socket:
    """A duplicate of an open socket, which may be closed, and its number reused, at any time."""
    number = os.dup(file)
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise OSError("not a socket")
        return socket.socket(fileno=number)
    except OSError:
        os.close(number)
        raise


def named(peer: str) -> Address | None:
    """The address in gRPC's name for a peer; None if it has none."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    with contextlib.suppress(OSError):
        return _address(host.strip("[]"), int(port))
    return None


def _address(host: str, port: int) -> Address:
    """Raises OSError if it is not an IP address. Dual-stack sockets show IPv4 addresses mapped into IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        raise OSError("not an IP address") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, port
