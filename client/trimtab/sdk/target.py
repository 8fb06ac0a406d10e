"""A server's address: whether gRPC accepts it, whether it is local, and whether a proxy may be used."""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass

from trimtab.errors import ConfigError

_SCHEMES = ("dns://", "unix://", "xds://", "ipv4://", "ipv6://")
# The variables that gRPC reads, in its order.
_PROXY = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY = ("no_grpc_proxy", "no_proxy")
# gRPC has two ways to use a proxy: by the target's name, and by its address.
_DIRECT: tuple[tuple[str, int | str], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy_enabled_addresses", ""),
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a client connects to. `direct`: without a proxy, whatever the environment says."""

    url: str
    direct: bool

    @property
    def options(self) -> tuple[tuple[str, int | str], ...]:
        """gRPC's options for this."""
        return _DIRECT if self.direct else ()

    @property
    def proxied(self) -> str:
        """A note about the proxy for error messages: gRPC's own name only the address that refused."""
        proxy = next((name for name in _PROXY if os.environ.get(name)), None)
        without = next((value for name in _NO_PROXY if (value := os.environ.get(name))), "")
        host = self.url.rpartition("/")[2].rpartition(":")[0]
        excepted = any(host.endswith(entry.strip()) for entry in without.split(",") if entry.strip())
        if proxy is None or excepted or self.url.startswith("unix:"):
            return ""
        if self.direct:
            return (
                f" ({proxy} is set, and not used: credentials in plain text go through no proxy, and nothing "
                "for this machine does)"
            )
        return (
            f" ({proxy} is set, so gRPC connects through that proxy: where the server is reached without "
            "one, put its host into no_proxy)"
        )


def target(url: str, *, encrypted: bool, credentials: bool) -> Target:
    """The target for a client, given whether it sends credentials and whether its connection is encrypted.

    A proxy could read unencrypted data, and is never needed within this machine. Raises ConfigError if gRPC
    would not accept the address.
    """
    checked = check_target(url)
    return Target(checked, direct=(credentials and not encrypted) or is_local(checked, resolve=False))


def check_target(url: str) -> str:
    """`url` as gRPC takes it: HOST:PORT, dns:///HOST:PORT, ipv4:..., unix:PATH."""
    if "://" in url and not url.startswith(_SCHEMES):
        scheme, rest = url.split("://", 1)
        cure = "with tls=True" if scheme in {"https", "grpcs"} else "without a scheme"
        raise ConfigError(
            f"url {url!r}: a gRPC address is written HOST:PORT; pass {rest.strip('/')!r} {cure}"
        )
    if not url:
        raise ConfigError("url is empty; pass HOST:PORT")
    return url


def is_local(url: str, *, resolve: bool = True) -> bool:
    """Whether the target can only mean this machine: a socket file, or loopback addresses.

    A name that merely begins like an address does not count. "localhost" is the only name that counts; with
    `resolve`, it must also resolve to loopback addresses.
    """
    if url.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in ("ipv4:", "ipv6:"):
        if url.startswith(scheme):
            return all(_is_loopback(each) for each in url.removeprefix(scheme).lstrip("/").split(","))
    if url.startswith("dns://") and not url.startswith("dns:///"):
        return False  # the authority is a DNS server, which may answer anything
    rest = url.removeprefix("dns:").removeprefix("///")
    if _host(rest).lower() in {"localhost", "localhost."}:
        return not resolve or _resolves_to_loopback()
    return _is_loopback(rest)


def _host(address: str) -> str:
    """The host of HOST:PORT or HOST, without the brackets around an IPv6 address."""
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.%\w]+)\](:\d+)?", address)
    if bracketed:
        return bracketed[1]
    host, colon, _ = address.rpartition(":")
    return host if colon and ":" not in host else address


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(_host(address)).is_loopback
    except ValueError:
        return False


def _resolves_to_loopback() -> bool:
    try:
        found = socket.getaddrinfo("localhost", None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)
