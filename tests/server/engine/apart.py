"""An engine behind the port for other processes; here both ends are in one process, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from tests.server import toy
from tests.server.toy import PROGRAM
from trimtab_server.config import Config, EngineSettings, LimitSettings, Quota, SharingSettings
from trimtab_server.engine.batch import Model
from trimtab_server.engine.configured import OwnEngine
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place
from trimtab_server.engine.port import Turn
from trimtab_server.engine.remote.host import EngineHost
from trimtab_server.engine.remote.remote import RemoteEngine
from trimtab_server.engine.runners.runner import Runner
from trimtab_server.group import Group
from trimtab_server.observing.metrics import Metrics, Statistics

PATIENCE = 120.0
TURN = Turn("tenant", "a flow", "interactive", None)
# Small enough to be reached.
CONFIG = Config(
    limits=LimitSettings(max_tokens_in_flight=100),
    quota=Quota(max_tokens_in_flight=80),
    sharing=SharingSettings(cache_bytes=1 << 20),
    engine=EngineSettings(hang_seconds=PATIENCE, load_seconds=PATIENCE),
)


@dataclass
class Apart:
    """An engine, as its process has it."""

    own: OwnEngine
    host: EngineHost
    opened: list[Model]
    fronts: list[RemoteEngine] = field(default_factory=list)

    async def connect(self, front: RemoteEngine) -> None:
        """Connect a front end."""
        one, other = socket.socketpair()
        await self.host.connect(one)
        await front.connect(other)

    async def front_end(self) -> RemoteEngine:
        """A new front end."""
        front = RemoteEngine()
        self.fronts.append(front)
        await self.connect(front)
        return front


@asynccontextmanager
async def apart(
    config: Config = CONFIG, opening: Opening | None = None, places: Sequence[Place] = (Place("cpu", 0, 1),)
) -> AsyncIterator[Apart]:
    """An engine whose device gives more than vectors."""
    opened: list[Model] = []

    def open_toy(model: Model, place: Place) -> Runner:
        opened.append(model)
        return toy.Runner()

    own = OwnEngine(
        config, opening or Opening(open_toy, PROGRAM, foreign=False), places, Metrics(CollectorRegistry()),
        serving=lambda up: engine.host.serving(up),
        retired=lambda model, why: engine.host.retired(model, why),
    )  # fmt: skip
    engine = Apart(own, EngineHost(own.engine, None), opened)
    own.start()
    try:
        yield engine
    finally:
        for front in engine.fronts:
            await front.close()
        await engine.host.close()
        await asyncio.to_thread(own.stop)


async def grouped(engine: Apart) -> Group:
    """What the only front end of an engine is given."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    async def everywhere(what: str, encoder: str) -> None:
        raise NotImplementedError("this front end is alone")

    async def statistics(encoder: str, version: int) -> Statistics:
        return metrics.statistics(encoder, version)

    return Group(await engine.front_end(), None, metrics, registry, everywhere, statistics)
