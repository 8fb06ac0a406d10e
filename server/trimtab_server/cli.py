"""Serve every bundle of a repository over gRPC, until SIGTERM or Ctrl-C.

  trimtab serve --repository models
  trimtab serve --repository models --config trimtab.toml --grpc-address 0.0.0.0:8001

Health (grpc.health.v1) says SERVING once every encoder is warm. Metrics for Prometheus stand at
http://METRICS_ADDRESS/metrics. Port 0 takes any free port; the line printed at the start names it.
"""

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from trimtab_server.app import App

SUMMARY = "serve the encoders of a repository over gRPC"
EXTRA = "server"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository", type=Path, required=True, help="folder of bundles: REPOSITORY/NAME/VERSION"
    )
    parser.add_argument("--config", type=Path, help="TOML file; see docs/configuration.md for every key")
    parser.add_argument("--grpc-address", metavar="HOST:PORT", help="instead of server.grpc_address")
    parser.add_argument("--metrics-address", metavar="HOST:PORT", help="instead of server.metrics_address")
    parser.add_argument("--verbose", action="store_true", help="log loads, drains and the like")


def run(options: argparse.Namespace) -> int:
    from trimtab_server import app, config

    logging.getLogger("trimtab_server").setLevel(logging.INFO if options.verbose else logging.WARNING)
    settings = config.read(options.config) if options.config else config.Config()
    given = {
        name: value
        for name in ("grpc_address", "metrics_address")
        if (value := getattr(options, name)) is not None
    }
    settings = msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, **given))
    asyncio.run(app.serve(settings, options.repository, _announce))
    return 0


def _announce(app: "App") -> None:
    """One line, for people and for scripts that wait for it."""
    from trimtab_server.config import split_address

    host, _ = split_address(app.config.server.grpc_address)
    metrics_host, _ = split_address(app.config.server.metrics_address)
    names = ", ".join(f"{each.name} (version {each.version})" for each in app.repository.encoders())
    url = f"{host}:{app.grpc_port}"
    sys.stdout.write(
        f"trimtab serves {names} on {url}, metrics on http://{metrics_host}:{app.metrics_port}/metrics; "
        f'try: echo "hello world" | .venv/bin/trimtab embed --url {url}\n'
    )
    sys.stdout.flush()
