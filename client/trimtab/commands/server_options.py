"""The options for reaching a server, shared by all commands that do."""

import argparse
import os
from pathlib import Path

import grpc

from trimtab.errors import ConfigError
from trimtab.sdk import channel
from trimtab.sdk.client import Client

# Secrets come from a file or the environment, since every process of the machine can read arguments.
TOKEN_VARIABLE = "TRIMTAB_TOKEN"  # noqa: S105


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare --url, --tls, --ca, --client-cert, --client-key, --token-file and --timeout."""
    server = parser.add_argument_group("server")
    server.add_argument("--url", default=channel.DEFAULT_URL, help="HOST:PORT; default: %(default)s")
    server.add_argument("--tls", action="store_true", help="use TLS, with the public authorities")
    server.add_argument("--ca", metavar="PEM", type=Path, help="use TLS, with these authorities")
    server.add_argument("--client-cert", metavar="PEM", type=Path, help="with --client-key: mutual TLS")
    server.add_argument("--client-key", metavar="PEM", type=Path)
    server.add_argument(
        "--token-file", metavar="FILE", type=Path,
        help=f"the API key or token to send; default: the variable {TOKEN_VARIABLE}, where it is set",
    )  # fmt: skip
    server.add_argument(
        "--timeout", type=float, default=60.0, metavar="S",
        help="the longest wait for an answer, in seconds; default: %(default)g",
    )  # fmt: skip


def connect(options: argparse.Namespace) -> Client:
    """The client that the options describe."""
    token = options.token_file or os.environ.get(TOKEN_VARIABLE)
    return Client(options.url, tls=_tls(options), timeout=options.timeout, token=token)


def _tls(options: argparse.Namespace) -> channel.Tls:
    certificate: Path | None = options.client_cert
    key: Path | None = options.client_key
    ca: Path | None = options.ca
    tls: bool = options.tls
    if (certificate is None) != (key is None):
        raise ConfigError("--client-cert and --client-key go together")
    if certificate is None or key is None:
        return ca or tls
    try:
        return grpc.ssl_channel_credentials(
            ca.read_bytes() if ca else None, key.read_bytes(), certificate.read_bytes()
        )
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
