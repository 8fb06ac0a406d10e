"""The whole server, from start to stop, on one page."""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from trimtab.artifacts.signatures import Signers
from trimtab.errors import ConfigError
from trimtab_server import waking
from trimtab_server.callers.access import SERVER
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.catalog.lifecycle import Lifecycle
from trimtab_server.catalog.opening import Opener
from trimtab_server.catalog.polling import Poller
from trimtab_server.catalog.repository import Repository
from trimtab_server.catalog.served import Entry
from trimtab_server.config import Config
from trimtab_server.engine.configured import OwnEngine
from trimtab_server.engine.fleet import cores
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place, parse
from trimtab_server.engine.port import EnginePort
from trimtab_server.engine.runners.adapter_host import AdapterHost, IsolatedAdapterHost
from trimtab_server.engine.runners.rehearsal_pool import Rehearsals
from trimtab_server.fronts.grpc.front_end import GrpcFrontEnd
from trimtab_server.group import Group
from trimtab_server.inputs.preparation import Preparation
from trimtab_server.observing import uptime
from trimtab_server.observing.metrics import Metrics
from trimtab_server.observing.scrapes import Scrapes
from trimtab_server.observing.tracing import Tracing
from trimtab_server.policies.brownout import Brownout, Brownouts
from trimtab_server.policies.canary import Canary
from trimtab_server.policies.hubs import PassageGuards
from trimtab_server.policies.routing import Routing
from trimtab_server.policies.shadow import Shadow, ShadowMetrics
from trimtab_server.policies.trials import Trials
from trimtab_server.policies.variants import Variants
from trimtab_server.spaces.adapters import Adapters
from trimtab_server.spaces.watching import DriftMonitor
from trimtab_server.tasks.embed import Embedder
from trimtab_server.tasks.pipeline import Pipeline
from trimtab_server.tasks.plan import Policy
from trimtab_server.tasks.rescore import Rescorer
from trimtab_server.turns import Turns

log = logging.getLogger(__name__)


class App:
    """A server: `start`, then `serve` until it is told to stop, then `stop`.

    `opening` says how graphs are opened, and `places` where, instead of the configuration's devices: tests
    hand in sessions that fail on purpose. With a `group`, it is one of several front ends of a server.
    """

    def __init__(
        self,
        config: Config,
        repository: Path,
        opening: Opening = Opening(),  # noqa: B008  # it is frozen
        places: Sequence[Place] | None = None,
        group: Group | None = None,
    ) -> None:
        places = () if group else places or parse(config.devices)
        if not any(place.kind == "cpu" for place in places):
            waking.politely()  # before gRPC starts its threads
        self.config = config
        self._group = group
        self.metrics_port = 0
        self._ready = False
        self._served = True  # while any device is in service
        self._registry = group.registry if group else CollectorRegistry()
        self._metrics = group.metrics if group else Metrics(self._registry)
        self._scrapes = Scrapes(self._registry)
        self._turns = Turns()
        self._tracing = Tracing(config.tracing) if config.tracing.endpoint else None
        self._preparation = Preparation(config.tokenization.threads)
        self._drift_monitor = DriftMonitor(self._registry)
        usable, isolated = cores.available(), config.engine.isolation == "process"
        self._adapter_host = IsolatedAdapterHost(usable) if isolated else AdapterHost()
        self._own: OwnEngine | None = None
        self._engine: EnginePort
        self._rehearsals: Rehearsals | None
        if group is None:
            self._own = OwnEngine(
                config, opening, places, self._metrics,
                serving=self._devices_changed, retired=self._model_retired, turns=self._turns,
            )  # fmt: skip
            self._engine, self._rehearsals = self._own.engine, self._own.rehearsals
        else:
            group.engine.watch(self._devices_changed, self._model_retired)
            self._served = group.engine.serving
            self._engine, self._rehearsals = group.engine, group.rehearsals
        trials = Trials(config.canary, config.shadow)
        settings = config.encoders.items()
        self._brownouts = Brownouts(
            {name: each.brownout for name, each in settings if each.brownout},
            self._queue_seconds,
            time.monotonic,
        )
        self._guards = PassageGuards(
            {name: each.guard for name, each in settings if each.guard}, self._metrics.suspicious
        )
        self.repository = self._make_repository(repository, trials, (self._brownouts, self._guards))
        self._poller = Poller(
            repository, self._changed_on_disk, config.versions.poll_seconds, config.engine.load_seconds
        )
        shadow_metrics = ShadowMetrics(self._registry)
        self._shadow = Shadow(self.repository, trials, self._preparation, self._engine, shadow_metrics)
        pipeline = Pipeline(
            config.limits,
            self.repository,
            self._preparation,
            self._engine,
            self._metrics,
            self._tracing,
            self._turns,
            statistics=group.statistics if group else None,
        )
        embedder = Embedder(pipeline, self._policies(trials), config.engine.hang_seconds)
        rescorer = Rescorer(pipeline, config.rescoring.cache_bytes)
        self._front_end = GrpcFrontEnd(config, pipeline, embedder, rescorer, trials, self._tracing)

    @property
    def served(self) -> list[tuple[str, int]]:
        """Names and versions of the encoders that are ready."""
        return [(each.name, each.version) for each in self.repository.encoders(SERVER)]

    @property
    def grpc_port(self) -> int:
        """Where clients call."""
        return self._front_end.port

    def _policies(self, trials: Trials) -> list[Policy]:
        """In the order in which they plan, and look; each call pays for those that are configured."""
        config, adapters = self.config, self.repository.adapters
        encoders = config.encoders.values()
        policies: list[tuple[object, Policy]] = [
            # Another version answers a share of the requests.
            (config.canary, Canary(self.repository, trials, adapters, self._metrics.canary)),
            # Which of its graphs is meant.
            (True, Variants()),
            # The way into each space wanted.
            (True, Routing(adapters)),
            # A cheaper graph computes, while the queue is long.
            (any(each.brownout for each in encoders), self._brownouts),
            # Another version sees a share of the texts.
            (config.shadow, self._shadow),
            # Passages that would be found too often are flagged or refused.
            (any(each.guard for each in encoders), self._guards),
        ]
        return [policy for configured, policy in policies if configured]

    def _make_repository(self, path: Path, trials: Trials, policies: Sequence[Lifecycle]) -> Repository:
        config, load_seconds = self.config, self.config.engine.load_seconds
        signers = _signers(config.signatures.keys)
        adapters = Adapters(self._drift_monitor, signers, load_seconds, self._rehearsals, self._adapter_host)
        opener = Opener(
            path,
            self._engine,
            adapters,
            signers=signers,
            wanted={name: each.wanted for name, each in config.encoders.items()},
            policies=policies,
            loaded=self._metrics.loaded,
            load_seconds=load_seconds,
            rehearsals=self._rehearsals,
        )
        return Repository(
            path,
            opener,
            adapters,
            self._changed,
            newest=config.versions.newest,
            on_trial=trials.versions,
            policies=policies,
            configured={"encoders": set(config.encoders), **trials.configured},
            load_seconds=load_seconds,
            everywhere=self._group.everywhere if self._group else None,
        )

    async def start(self) -> None:
        """Listen, load and warm every encoder, and only then say SERVING. One of several front ends listens
        when it serves, since until then the others do.

        Raises ConfigError if an address cannot be used, or no encoder can be served.
        """
        process = uptime.seconds()
        if self._own is not None:
            self.metrics_port = await self._scrapes.start(self.config.server.metrics_address)
            self._own.start()
            await self._front_end.start()
        await self.repository.load_all(self._group.unloaded if self._group else ())
        unloaded = self._group is not None and self._group.unloaded
        if not (self.repository.encoders(SERVER) or unloaded):
            reasons = "".join(
                f"\n  {entry.name}/{entry.version}: {entry.reason}" for entry in self.repository.index(SERVER)
            )
            raise ConfigError(
                f"no encoder can be served from {self.repository.path}{reasons or ': it is empty'}"
                "\nMake a bundle with `trimtab export SOURCE --name NAME --repository DIR`"
            )
        encoders = uptime.seconds() - process
        self._metrics.started(process, encoders)
        log.info("ready after %.2f s, of which the encoders took %.2f s", process + encoders, encoders)
        self._ready = True
        self._announce()
        if self.config.shadow:
            self._shadow.start()
        if self._own is not None:
            self._poller.start()
        else:
            await self._front_end.start()

    async def stop(self) -> None:
        """Drain: refuse what is new, answer what is in flight, then stop. Bounded by `drain_seconds`."""
        self._ready = False
        await self._front_end.drain(self.config.server.drain_seconds)
        self._poller.stop()
        await self._shadow.stop()
        await self.repository.stop()
        await asyncio.to_thread(self._adapter_host.stop)
        await self._front_end.stop()
        if self._own is not None:
            await asyncio.to_thread(self._own.stop)
        await asyncio.to_thread(self._preparation.stop)
        await asyncio.to_thread(self._drift_monitor.stop)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)
        self._scrapes.stop()

    async def _changed_on_disk(self, encoder: str) -> None:
        await self.repository.load(SERVER, encoder)

    def _changed(self, entry: Entry) -> None:
        log.info("%s version %s is %s %s", entry.name, entry.version, entry.state, entry.reason)
        self._announce()
        if entry.retired:
            self._metrics.forget(entry.name, entry.version)
            self._shadow.forget(entry.name, entry.version)

    def _devices_changed(self, serving: bool) -> None:
        self._served = serving
        self._announce()

    def _queue_seconds(self, encoder: LoadedEncoder, flow: str) -> float:
        return self._engine.pressure().queue_seconds(encoder.number, flow, "interactive")

    def _model_retired(self, model: int, why: str) -> None:
        self.repository.retire(model, why)

    def _announce(self) -> None:
        """Tell everyone who asks what can be served now: nothing at all while no device is in service."""
        tell = self._front_end.tell
        tell("", self._ready and self._served)
        encoders = [encoder.name for encoder in self.repository.encoders(SERVER)]
        for entry in self.repository.index(SERVER):
            serving = entry.state == "READY" and self._served
            if not entry.retired:
                self._metrics.ready(entry.name, entry.version, serving)
            brownout = self._brownouts.of(entry.name, entry.version)
            if brownout is not None:
                on = partial(_browned_out, brownout)
                self._metrics.watch_brownout(entry.name, entry.version, on)
            tell(f"{entry.name}/{entry.version}", serving)
            tell(entry.name, entry.name in encoders and self._served)


def _browned_out(brownout: Brownout) -> bool:
    return brownout.lasts(time.monotonic())


def _signers(keys: Path | None) -> Signers | None:
    try:
        return Signers(keys) if keys else None
    except ModuleNotFoundError:
        raise ConfigError("signatures.keys needs cryptography: pip install 'trimtab[auth]'") from None
