"""Ports that several processes listen on: the kernel spreads the connections over them (SO_REUSEPORT)."""

import contextlib
import socket

from trimtab.errors import ConfigError
from trimtab_server.config import split_address


def reserve(address: str) -> tuple[list[socket.socket], str]:
    """Reserve HOST:PORT for the processes of this server, and return it with a port that is not 0.

    The port stays reserved until the sockets are closed. None of them listens, so they get no connections.
    Raises ConfigError if the port is taken: without this, two servers could share one unnoticed.
    """
    host, port = split_address(address)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as alone:
            if port:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(place)
        with contextlib.ExitStack() as stack:
            reserved = stack.enter_context(socket.socket(family, kind, protocol))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(place)
            taken = reserved.getsockname()[1]
            # Another server that is about to start does not listen yet: this tells it that the port is taken.
            flag = stack.enter_context(socket.socket(socket.AF_UNIX))
            flag.bind(f"\0trimtab:{taken}")
            stack.pop_all()
    except OSError as error:
        raise ConfigError(f"gRPC address {address} cannot be used: {error.strerror}") from None
    return [reserved, flag], f"{address.rpartition(':')[0]}:{taken}"
