"""What a front end has from outside, if it is one of several of a server."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from trimtab_server.catalog.repository import Everywhere
from trimtab_server.engine.remote.remote import RemoteEngine
from trimtab_server.engine.runners.rehearsal_pool import Rehearsals
from trimtab_server.observing.metrics import Metrics, Statistics


@dataclass(frozen=True, slots=True)
class Group:
    """The engine that all front ends share, and what they do together.

    metrics, registry: this front end's, which the supervisor merges with the others'. everywhere: loads or
    unloads an encoder in all of them. statistics: those of an encoder version, over all of them and the
    engine. unloaded: encoders that a client unloaded before this front end started.
    """

    engine: RemoteEngine
    rehearsals: Rehearsals | None
    metrics: Metrics
    registry: CollectorRegistry
    everywhere: Everywhere
    statistics: Callable[[str, int], Awaitable[Statistics]]
    unloaded: frozenset[str] = frozenset()
