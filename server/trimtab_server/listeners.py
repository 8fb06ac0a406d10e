"""The ports: how gRPC servers are made, where they listen, and what a connection may ask of them."""

from collections.abc import Sequence

import grpc
import grpc.aio

from trimtab.errors import ConfigError
from trimtab_server.config import Config, Tls, split_address

# A probe is a few bytes.
PROBE_BYTES = 4096


def make(config: Config, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:
    """A server for clients, which listens nowhere yet."""
    options = [
        ("grpc.max_receive_message_length", config.limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", config.limits.max_calls_per_connection),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a silent share
        # Clients may ping a connection this often; the SDK does each minute.
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ]
    if config.server.max_connection_age_seconds:
        # What is on its way may take as long as it may when the server stops.
        options += [
            ("grpc.max_connection_age_ms", round(config.server.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", round(config.server.drain_seconds * 1000)),
        ]
    return grpc.aio.server(interceptors=interceptors, options=options)


def make_probed(interceptors: Sequence[grpc.aio.ServerInterceptor]) -> grpc.aio.Server:
    """A server for an orchestrator's probes, which speak neither TLS nor credentials."""
    return grpc.aio.server(
        interceptors=interceptors,
        options=[("grpc.max_receive_message_length", PROBE_BYTES), ("grpc.so_reuseport", 0)],
    )


def bind(server: grpc.aio.Server, address: str, tls: Tls | None) -> int:
    """Let a server listen at HOST:PORT, and return the port. ConfigError where that cannot be had."""
    split_address(address)
    try:
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, _credentials(tls))
    except RuntimeError as error:
        raise ConfigError(f"gRPC address {address} cannot be used: {error}") from None


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    try:
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
    except OSError as error:
        raise ConfigError(f"server.tls: {error.filename} cannot be read: {error.strerror}") from None
    return grpc.ssl_server_credentials([pair], client_ca, require_client_auth=client_ca is not None)
