"""Hangs up on a peer, which gRPC's servers cannot: its socket is shut down beneath them.

gRPC then sees a connection that has ended, gives up its calls, and frees what it kept for them.
"""

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Collection
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

# Every open file of this process, on Linux and elsewhere.
FILES = Path("/dev/fd")

Address: TypeAlias = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]


def hang_up(peers: Collection[str]) -> set[str]:
    """Shut down the connections of peers as gRPC names them, "ipv4:127.0.0.1:5" or "ipv6:%5B::1%5D:5"; those
    that were found. Peers of other kinds, such as "unix:", cannot be told apart, and are not."""
    wanted = {address: peer for peer in peers if (address := _named(peer)) is not None}
    found: set[str] = set()
    for file in FILES.iterdir() if wanted else ():
        with contextlib.suppress(OSError), _duplicate(int(file.name)) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            address = _address(*connection.getpeername()[:2])
            if address in wanted:
                connection.shutdown(socket.SHUT_RDWR)
                found.add(wanted[address])
    return found


def _duplicate(file: int) -> socket.socket:
    """A socket of its own for an open one, which may be closed, and its number be another's, at any time."""
    number = os.dup(file)
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise OSError("no socket")
        return socket.socket(fileno=number)
    except OSError:
        os.close(number)
        raise


def _named(peer: str) -> Address | None:
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdecimal():
        return None
    with contextlib.suppress(OSError):
        return _address(host.strip("[]"), int(port))
    return None


def _address(host: str, port: int) -> Address:
    """OSError where it is none. A socket of both versions has IPv4's addresses mapped into IPv6's."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        raise OSError("no address of IP") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, port
