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
from trimtab_server.callers.access import SERVER
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.catalog.lifecycle import Lifecycle
from trimtab_server.catalog.opening import Opener
from trimtab_server.catalog.polling import Poller
from trimtab_server.catalog.repository import Repository
from trimtab_server.catalog.served import Entry
from trimtab_server.config import Config, split_address
from trimtab_server.engine.admission.admission import Admission
from trimtab_server.engine.admission.quotas import Quotas
from trimtab_server.engine.fleet import cores
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.measuring import CostCache
from trimtab_server.engine.fleet.places import Place, parse
from trimtab_server.engine.local import LocalEngine
from trimtab_server.engine.queue.batcher import Batcher
from trimtab_server.engine.queue.sharing import Sharing
from trimtab_server.engine.runners.adapter_host import AdapterHost, IsolatedAdapterHost
from trimtab_server.engine.runners.rehearsal_pool import RehearsalPool
from trimtab_server.engine.tickets import Ticket
from trimtab_server.fronts.grpc.front_end import GrpcFrontEnd
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
    hand in sessions that fail on purpose.
    """

    def __init__(
        self,
        config: Config,
        repository: Path,
        opening: Opening = Opening(),  # noqa: B008  # it is frozen
        places: Sequence[Place] | None = None,
    ) -> None:
        self.config = config
        self.metrics_port = 0
        self._ready = False
        self._served = True  # while any device is in service
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._scrapes = Scrapes(self._registry)
        self._turns = Turns()
        self._tracing = Tracing(config.tracing) if config.tracing.endpoint else None
        self._preparation = Preparation(config.tokenization.threads)
        self._drift_monitor = DriftMonitor(self._registry)
        places, usable = places or parse(config.devices), cores.available()
        isolated, first = config.engine.isolation == "process", places[0]
        rehearsals = RehearsalPool(first.kind, first.index, config.engine.load_seconds, usable)
        self._rehearsals = rehearsals if opening.foreign else None
        self._adapter_host = IsolatedAdapterHost(usable) if isolated else AdapterHost()
        self._engine = self._make_engine(opening, places)
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
        self._poller = Poller(self.repository, config.versions.poll_seconds, config.engine.load_seconds)
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
        )
        embedder = Embedder(pipeline, self._policies(trials), config.engine.hang_seconds)
        rescorer = Rescorer(pipeline, config.rescoring.cache_bytes)
        self._front_end = GrpcFrontEnd(config, pipeline, embedder, rescorer, trials, self._tracing)

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

    def _make_engine(self, opening: Opening, places: Sequence[Place]) -> LocalEngine:
        config, settings = self.config, self.config.engine
        batching, quotas = config.batching, Quotas(config.quota, config.tenants)
        sharing: Sharing[Ticket] = Sharing(
            single_flight=config.sharing.single_flight,
            across_tenants=config.sharing.across_tenants,
            cache_bytes=config.sharing.cache_bytes,
        )
        folder = _folder(settings.costs) if opening.foreign and settings.costs else None
        cost_cache = CostCache(folder) if folder else None

        def device(place: Place) -> Device:
            home = opening.home(place, isolated=settings.isolation == "process")
            return Device(place, home, cost_cache, settings.max_resident_bytes, settings.hang_seconds)

        return LocalEngine(
            Batcher(batching.max_batch_tokens, batching.max_batch_texts, quotas.weight, config.tenants),
            sharing,
            list(map(device, places)),
            Admission(config.limits.max_tokens_in_flight, quotas, self._metrics.not_admitted),
            self._metrics,
            hang_seconds=settings.hang_seconds,
            load_seconds=settings.load_seconds,
            serving=self._devices_changed,
            retired=self._model_retired,
            turns=self._turns,
        )

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
        )

    async def start(self) -> None:
        """Listen, load and warm every encoder, and only then say SERVING.

        Raises ConfigError if an address cannot be used, or no encoder can be served.
        """
        process = uptime.seconds()
        host, port = split_address(self.config.server.metrics_address)
        try:
            self.metrics_port = await self._scrapes.start(host, port)
        except OSError as error:
            raise ConfigError(f"metrics address {host}:{port} cannot be used: {error.strerror}") from None
        if self._rehearsals is not None:
            self._rehearsals.start()
        self._engine.start()
        await self._front_end.start()
        await self.repository.load_all()
        if not self.repository.encoders(SERVER):
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
        self._poller.start()

    async def stop(self) -> None:
        """Drain: refuse what is new, answer what is in flight, then stop. Bounded by `drain_seconds`."""
        self._ready = False
        await self._front_end.drain(self.config.server.drain_seconds)
        self._poller.stop()
        await self._shadow.stop()
        await self.repository.stop()
        if self._rehearsals is not None:
            await asyncio.to_thread(self._rehearsals.stop)
        await asyncio.to_thread(self._adapter_host.stop)
        await self._front_end.stop()
        await asyncio.to_thread(self._engine.stop)
        await asyncio.to_thread(self._preparation.stop)
        await asyncio.to_thread(self._drift_monitor.stop)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)
        self._scrapes.stop()

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


def _folder(path: str) -> Path | None:
    """The folder meant by a path that may begin with ~; None for a user who has no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        log.warning("engine.costs is %s, and this user has no home: costs are measured at each start", path)
        return None
