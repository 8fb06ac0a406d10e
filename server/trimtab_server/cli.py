"""Serve every bundle of a repository over gRPC, until SIGTERM, SIGHUP or Ctrl-C.

  trimtab serve --repository models
  trimtab serve --repository models --config trimtab.toml --grpc-address 0.0.0.0:8001

Health (grpc.health.v1) says SERVING once every encoder is warm. A bundle that cannot be loaded is logged and
not served. Prometheus metrics are at http://METRICS_ADDRESS/metrics. Port 0 takes any free port; the line
printed at startup names it.
"""

import argparse
import logging
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from trimtab_server.app import App
    from trimtab_server.config import Config
    from trimtab_server.processes.supervisor import Supervisor

log = logging.getLogger(__name__)

SUMMARY = "serve the encoders of a repository over gRPC"
EXTRA = "server"
FRONT_ENDS_A_GPU = 4


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository", type=Path, required=True, help="folder of bundles: REPOSITORY/NAME/VERSION"
    )
    parser.add_argument("--config", type=Path, help="TOML file; see docs/configuration.md for every key")
    parser.add_argument("--grpc-address", metavar="HOST:PORT", help="overrides server.grpc_address")
    parser.add_argument("--metrics-address", metavar="HOST:PORT", help="overrides server.metrics_address")
    parser.add_argument("--verbose", action="store_true", help="also log loads, drains and similar events")


def run(options: argparse.Namespace) -> int:
    from trimtab_server import memory

    memory.share_heaps()
    from trimtab_server import config, serving
    from trimtab_server.fronts.grpc import open_files
    from trimtab_server.observing import logs

    settings = config.read(options.config) if options.config else config.Config()
    given = {
        name: value
        for name in ("grpc_address", "metrics_address")
        if (value := getattr(options, name)) is not None
    }
    settings = msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, **given))
    logs.configure(settings.logging, verbose=options.verbose)
    settings = open_files.within(settings, _allow_files())
    serving.run(_serve(settings, options.repository, verbose=options.verbose))
    return 0


async def _serve(settings: "Config", repository: Path, *, verbose: bool) -> None:
    from trimtab_server import serving

    number = settings.server.frontends or _front_ends(settings.devices)
    settings = msgspec.structs.replace(
        settings, server=msgspec.structs.replace(settings.server, frontends=number)
    )
    server: App | Supervisor = (
        _one(settings, repository) if number == 1 else _several(settings, repository, verbose=verbose)
    )
    await serving.serve(server, lambda: _announce(server))


def _one(settings: "Config", repository: Path) -> "App":
    from trimtab_server.app import App

    return App(settings, repository)


def _several(settings: "Config", repository: Path, *, verbose: bool) -> "Supervisor":
    from trimtab_server.processes.supervisor import Supervisor  # without gRPC, which it does not need

    return Supervisor(settings, repository, verbose=verbose)


def _front_ends(devices: tuple[str, ...]) -> int:
    """How many front ends there are by default. CPUs have no time for more than one. A GPU takes more than
    one front end can bring, if callers send short texts one by one."""
    from trimtab_server.engine.fleet import cores, places

    gpus = sum(place.kind != "cpu" for place in places.parse(devices))
    return max(1, min(FRONT_ENDS_A_GPU * gpus, cores.usable() // 2))


def _allow_files() -> int:
    """Raise the limit of open files as far as allowed: each connection takes one, and the default is low."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def _announce(app: "App | Supervisor") -> None:
    """The line printed once ready, for people and for scripts that wait for it."""
    server = app.config.server
    host, metrics_host = (each.rpartition(":")[0] for each in (server.grpc_address, server.metrics_address))
    names = ", ".join(f"{name} (version {version})" for name, version in app.served)
    url = f"{host}:{app.grpc_port}"
    try_it = f'echo "hello world" | {sys.argv[0]} embed --url {url}'
    if len({name for name, _ in app.served}) > 1:
        try_it += f" --encoder {app.served[0][0]}"
    if server.tls is not None:
        try_it += f" --ca {server.tls.certificate}"
    _say(
        f"trimtab serves {names} on {url}, metrics on http://{metrics_host}:{app.metrics_port}/metrics; "
        f"try: {try_it}\n"
    )


def _say(line: str) -> None:
    """Write to standard output. If it is closed or the disk is full, serve all the same."""
    try:
        if sys.stdout is not None:
            sys.stdout.write(line)
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        log.warning("standard output cannot be written to: %s", error)
        # The process would otherwise retry the write at its end, and exit with an error.
        sys.stdout = None
