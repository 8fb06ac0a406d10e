"""How many connections the limit of open files allows."""

import logging
import resource

import msgspec

from trimtab.errors import ConfigError
from trimtab_server.config import Config

log = logging.getLogger(__name__)

# Open files other than clients' connections: the metrics port's, gRPC's own, bundles being loaded.
FILES_BESIDE = 256
LEAST_CONNECTIONS = 16


def within(config: Config, files: int) -> Config:
    """The configuration, with no more connections than the limit of open files allows.

    A port that accepts a connection and finds no free file cannot serve its other connections either. Raises
    ConfigError if hardly any connection fits.
    """
    ports = 1 + bool(config.server.admin_address) + bool(config.server.health_address)
    room = (files - FILES_BESIDE) // ports
    if files == resource.RLIM_INFINITY or config.limits.max_connections <= room:
        return config
    cure = f"raise it to {FILES_BESIDE + ports * config.limits.max_connections} (ulimit -n, LimitNOFILE)"
    if room < LEAST_CONNECTIONS:
        raise ConfigError(f"the limit of open files is {files}, which leaves none for clients: {cure}")
    log.warning(
        "the limit of open files is %d: accepting %d connections at a time instead of the %d of "
        "limits.max_connections; %s",
        files, room, config.limits.max_connections, cure,
    )  # fmt: skip
    limits = msgspec.structs.replace(config.limits, max_connections=room)
    return msgspec.structs.replace(config, limits=limits)
