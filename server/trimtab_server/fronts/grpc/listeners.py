"""The ports: how gRPC servers are made, where they listen, and what they allow a connection."""

import logging
import ssl
from collections.abc import Sequence

import grpc
import grpc.aio

from trimtab.errors import ConfigError
from trimtab_server.callers.refreshed import WatchedFiles
from trimtab_server.config import Config, LimitSettings, Tls, split_address

log = logging.getLogger(__name__)

# A probe is a few bytes.
PROBE_BYTES = 4096
# gRPC's default of two minutes would let a client that sends nothing hold a connection for that long.
HANDSHAKE_SECONDS = 20
# The least time between a client's pings, with or without calls; the SDK pings every minute.
PING_SECONDS = 20
# A client that does not answer a ping within this time is gone; within less if pings are more frequent.
PING_ANSWER_SECONDS = 20
# HTTP/2's window: what a call may send before the server reads its message. With gRPC's own estimate of the
# network, every call could send 4 MiB unasked.
CALL_WINDOW_BYTES = 65_535
# Of a call's headers, as HTTP/2 counts them: names, values, and 32 bytes each. Between this and twice as
# much, gRPC refuses calls at random. In memory, a header takes several times its bytes.
HEADERS_BYTES = 8192
# How long a call may wait until the server takes it up. By default gRPC cancels it after 30 s, which does not
# tell the client to try elsewhere; the call's own deadline is enough.
UNREQUESTED_SECONDS = 24 * 3600


def in_advance(limits: LimitSettings) -> int:
    """Bytes that a connection's calls may send before the server reads their messages."""
    return 2 * limits.max_calls_per_connection * CALL_WINDOW_BYTES


def make(config: Config, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:
    """A server for clients, not yet bound to an address."""
    options = [
        ("grpc.max_receive_message_length", config.limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.server_max_unrequested_time_in_server", UNREQUESTED_SECONDS),
        *_connections(config),
    ]
    if config.server.max_connection_age_seconds:
        # Open calls get as much time as when the server stops.
        options += [
            ("grpc.max_connection_age_ms", round(config.server.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", round(config.server.drain_seconds * 1000)),
        ]
    return grpc.aio.server(interceptors=interceptors, options=options)


def make_probed(config: Config, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:
    """A server for an orchestrator's probes, which use neither TLS nor credentials."""
    return grpc.aio.server(
        interceptors=interceptors,
        options=[
            ("grpc.max_receive_message_length", PROBE_BYTES),
            *_connections(config),
        ],
    )


def _connections(config: Config) -> list[tuple[str, int]]:
    """What every port allows a connection, and how long it keeps an unused one."""
    server, limits = config.server, config.limits
    answer = round(min(PING_ANSWER_SECONDS, server.keepalive_seconds) * 1000)
    options = [
        # Front ends share their ports. Any other taken port is an error, not silently shared.
        ("grpc.so_reuseport", int(server.frontends > 1)),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", limits.max_calls_per_connection),
        # Further streams, which the client has ended and the server has not freed yet. With fewer, a client
        # that has many calls open and cancels one in seven would have others refused.
        ("grpc.http2.max_deallocating_streams", limits.max_calls_per_connection),
        ("grpc.max_metadata_size", HEADERS_BYTES),
        ("grpc.absolute_max_metadata_size", HEADERS_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        # gRPC would decompress a message of any size. Left compressed, it is refused by the boundary.
        ("grpc.per_message_decompression", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", CALL_WINDOW_BYTES),
        ("grpc.keepalive_time_ms", round(server.keepalive_seconds * 1000)),
        ("grpc.http2.ping_timeout_ms", answer),
        ("grpc.keepalive_timeout_ms", answer),
        ("grpc.keepalive_permit_without_calls", 1),  # both ways: the server's pings, and the clients'
        ("grpc.http2.min_ping_interval_without_data_ms", PING_SECONDS * 1000),
    ]
    if server.max_idle_seconds:
        options.append(("grpc.max_connection_idle_ms", round(server.max_idle_seconds * 1000)))
    return options


def bind(server: grpc.aio.Server, address: str, tls: Tls | None) -> int:
    """Let a server listen at HOST:PORT, and return the port. ConfigError if the address cannot be used."""
    split_address(address)
    try:
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, _credentials(tls))
    except RuntimeError as error:
        raise ConfigError(f"gRPC address {address} cannot be used: {error}") from None


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """Credentials that follow the certificates on disk: a renewed one needs no restart."""
    files = tuple(path for path in (tls.key, tls.certificate, tls.client_ca) if path)

    def read() -> grpc.ServerCertificateConfiguration:
        client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        _check(tls)
        return grpc.ssl_server_certificate_configuration([pair], client_ca)

    watched = WatchedFiles("server.tls", files, read)
    return grpc.dynamic_ssl_server_credentials(
        watched.get(), watched.get, require_client_authentication=tls.client_ca is not None
    )


def _check(tls: Tls) -> None:
    """Refuse what gRPC would refuse at a handshake, and a pair of which only one file has been renewed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.certificate, tls.key, password="")
    except ssl.SSLError as error:
        raise ValueError(f"{tls.certificate} and {tls.key} are not a pair in PEM: {error}") from None
    if tls.client_ca:
        try:
            context.load_verify_locations(tls.client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"{tls.client_ca} holds no certificates in PEM: {error}") from None
