"""The whole server, from start to stop, on one page."""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2, service_pb2_grpc

from trimtab.artifacts.signatures import Signers
from trimtab.errors import ConfigError
from trimtab.v1 import encoder_pb2, encoder_pb2_grpc
from trimtab_server.callers.access import SERVER
from trimtab_server.callers.auth import Authenticator
from trimtab_server.catalog.encoder import Encoder
from trimtab_server.catalog.lifecycle import Lifecycle
from trimtab_server.catalog.opening import Opener
from trimtab_server.catalog.polling import Poller
from trimtab_server.catalog.repository import Repository
from trimtab_server.catalog.served import Entry
from trimtab_server.config import Auth, Config, split_address
from trimtab_server.engine.admission.admission import Admission
from trimtab_server.engine.admission.quotas import Quotas
from trimtab_server.engine.fleet import cores
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.measuring import Measured
from trimtab_server.engine.fleet.places import Place, parse
from trimtab_server.engine.local import LocalEngine
from trimtab_server.engine.queue.batcher import Batcher
from trimtab_server.engine.queue.sharing import Sharing
from trimtab_server.engine.runners.mapping import IsolatedMaps, Maps
from trimtab_server.engine.runners.stage import Stage
from trimtab_server.engine.tickets import Ticket
from trimtab_server.inputs.text import Tokenization
from trimtab_server.observing import uptime
from trimtab_server.observing.load import Load
from trimtab_server.observing.metrics import Metrics
from trimtab_server.observing.scrapes import Scrapes
from trimtab_server.observing.tracing import Tracing
from trimtab_server.policies.brownout import Brownout, Brownouts
from trimtab_server.policies.canary import Canary
from trimtab_server.policies.hubs import Guards
from trimtab_server.policies.routing import Routing
from trimtab_server.policies.shadow import Figures, Shadow
from trimtab_server.policies.trials import Trials
from trimtab_server.policies.variants import Variants
from trimtab_server.rpc import listeners, reflection, sockets
from trimtab_server.rpc.arriving import Arriving
from trimtab_server.rpc.boundary import Boundary
from trimtab_server.rpc.guard import Guard
from trimtab_server.rpc.health import Health
from trimtab_server.rpc.intake import Intake
from trimtab_server.rpc.kserve import KServeServicer
from trimtab_server.rpc.native import NativeServicer
from trimtab_server.rpc.newcomers import Newcomers
from trimtab_server.rpc.observed import Observed
from trimtab_server.rpc.senders import Tenants
from trimtab_server.rpc.unread import Unread
from trimtab_server.spaces.adapters import Adapters
from trimtab_server.spaces.watching import Watch
from trimtab_server.tasks.embed import Embedder
from trimtab_server.tasks.pipeline import Pipeline
from trimtab_server.tasks.plan import Policy
from trimtab_server.tasks.rescore import Rescorer
from trimtab_server.turns import Turns

log = logging.getLogger(__name__)

# While nothing is in flight any more: calls that are on their way are told to go elsewhere. gRPC's own stop
# would cancel them, and a client may not try those again.
LATE_SECONDS = 0.3
# After the calls have been answered: time for the last bytes to leave.
FLUSH_SECONDS = 1.0
# Between two looks at who does not take answers.
UNREAD_SECONDS = 1.0
SERVICES = (
    encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name,
    service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
)


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
        self.grpc_port = 0
        self.metrics_port = 0
        self._ready = False
        self._served = True  # while any device is in service
        self._watching: list[asyncio.Task[None]] = []
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._scrapes = Scrapes(self._registry)
        self._health = Health()
        self._turns = Turns()
        self._tracing = Tracing(config.tracing) if config.tracing.endpoint else None
        self._tokenization = Tokenization(config.tokenization.threads)
        self._watch = Watch(self._registry)
        places, usable = places or parse(config.devices), cores.available()
        isolated, first = config.engine.isolation == "process", places[0]
        self._stage = (
            Stage(first.kind, first.index, config.engine.load_seconds, usable) if opening.foreign else None
        )
        self._maps = IsolatedMaps(usable) if isolated else Maps()
        self._engine = self._make_engine(opening, places)
        trials = Trials(config.canary, config.shadow)
        settings = config.encoders.items()
        brownouts = {name: each.brownout for name, each in settings if each.brownout}
        guarded = {name: each.guard for name, each in settings if each.guard}
        self._brownouts = Brownouts(brownouts, self._queue_seconds, time.monotonic)
        guards = Guards(guarded, self._metrics.suspicious)
        self.repository = self._make_repository(repository, trials, (self._brownouts, guards))
        self._poller = Poller(self.repository, config.versions.poll_seconds, config.engine.load_seconds)
        figures = Figures(self._registry)
        self._shadow = Shadow(self.repository, trials, self._tokenization, self._engine, figures)
        pipeline = Pipeline(
            config.limits,
            self.repository,
            self._tokenization,
            self._engine,
            self._metrics,
            self._tracing,
            self._turns,
        )
        adapters = self.repository.adapters
        canary = Canary(self.repository, trials, adapters, self._metrics.canary)
        # In the order in which they plan, and look; each call pays for those that are configured.
        policies: list[tuple[object, Policy]] = [
            (config.canary, canary),  # another version answers a share of the requests
            (True, Variants()),  # which of its graphs is meant
            (True, Routing(adapters)),  # the way into each space wanted
            (brownouts, self._brownouts),  # a cheaper graph computes, while the queue is long
            (config.shadow, self._shadow),  # another version sees a share of the texts
            (guarded, guards),  # passages that would be found too often are flagged or refused
        ]
        configured = [policy for settings, policy in policies if settings]
        embedder = Embedder(pipeline, configured, config.engine.hang_seconds)
        self._servers = self._make_servers(pipeline, embedder, trials)

    def _make_engine(self, opening: Opening, places: Sequence[Place]) -> LocalEngine:
        config, settings = self.config, self.config.engine
        batching, quotas = config.batching, Quotas(config.quota, config.tenants)
        sharing: Sharing[Ticket] = Sharing(
            single_flight=config.sharing.single_flight,
            across_tenants=config.sharing.across_tenants,
            cache_bytes=config.sharing.cache_bytes,
        )
        folder = _folder(settings.costs) if opening.foreign and settings.costs else None
        measured = Measured(folder) if folder else None

        def device(place: Place) -> Device:
            home = opening.home(place, isolated=settings.isolation == "process")
            return Device(place, home, measured, settings.max_resident_bytes, settings.hang_seconds)

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
        adapters = Adapters(self._watch, signers, load_seconds, self._stage, self._maps)
        opener = Opener(
            path,
            self._engine,
            adapters,
            signers=signers,
            wanted={name: each.wanted for name, each in config.encoders.items()},
            policies=policies,
            loaded=self._metrics.loaded,
            load_seconds=load_seconds,
            stage=self._stage,
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

    def _make_servers(
        self, pipeline: Pipeline, embedder: Embedder, trials: Trials
    ) -> tuple[grpc.aio.Server, ...]:
        config, limits = self.config, self.config.limits
        self._arriving = Arriving(limits.max_received_bytes)
        self._intake = Intake(limits.max_calls, limits.max_received_bytes, self._arriving)
        self._unread = unread = Unread(limits.max_unread_bytes, limits.max_unread_seconds, sockets.hang_up)
        tenants = Tenants(config.server.tenant_header)
        self._boundary, self._admin_boundary = self._boundaries(unread, tenants)
        rescorer = Rescorer(pipeline, config.rescoring.cache_bytes)
        self._native = NativeServicer(pipeline, embedder, rescorer, trials, unread)
        self._kserve = KServeServicer(
            pipeline, embedder, self._metrics, unread, lambda: self._ready and self._served
        )
        return self._listen()

    async def start(self) -> None:
        """Listen, load and warm every encoder, and only then say SERVING.

        Raises ConfigError where an address cannot be had or no encoder can be served.
        """
        process = uptime.seconds()
        host, port = split_address(self.config.server.metrics_address)
        try:
            self.metrics_port = await self._scrapes.start(host, port)
        except OSError as error:
            raise ConfigError(f"metrics address {host}:{port} cannot be used: {error.strerror}") from None
        if self._stage is not None:
            self._stage.start()
        self._engine.start()
        newcomers = Newcomers(
            self.config.limits.max_connections,
            sockets.open_files,
            partial(sockets.connected, self.grpc_port),
            lambda: {address for peer in self._intake.used() if (address := sockets.named(peer))},
            sockets.shut_down,
        )
        watches = (self._arriving.watch(), self._watch_unread(), newcomers.watch())
        self._watching = [asyncio.create_task(each) for each in watches]
        for server in self._servers:
            await server.start()
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
        self._health.drain()
        self._native.drain()
        self._kserve.drain()
        seconds = self.config.server.drain_seconds
        await asyncio.gather(self._boundary.drain(seconds), self._admin_boundary.drain(seconds))
        await asyncio.sleep(min(LATE_SECONDS, seconds))
        self._poller.stop()
        for watching in self._watching:
            watching.cancel()
        await self._shadow.stop()
        await self.repository.stop()
        if self._stage is not None:
            await asyncio.to_thread(self._stage.stop)
        await asyncio.to_thread(self._maps.stop)
        await asyncio.gather(*(server.stop(FLUSH_SECONDS) for server in self._servers))
        await asyncio.to_thread(self._engine.stop)
        await asyncio.to_thread(self._tokenization.stop)
        await asyncio.to_thread(self._watch.stop)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop)
        self._scrapes.stop()

    async def _watch_unread(self) -> None:
        while True:
            await asyncio.sleep(UNREAD_SECONDS)
            self._unread.end_slow()

    def _changed(self, entry: Entry) -> None:
        log.info("%s version %s is %s %s", entry.name, entry.version, entry.state, entry.reason)
        self._announce()
        if entry.retired:
            self._metrics.forget(entry.name, entry.version)
            self._shadow.forget(entry.name, entry.version)

    def _devices_changed(self, serving: bool) -> None:
        self._served = serving
        self._announce()

    def _queue_seconds(self, encoder: Encoder, flow: str) -> float:
        return self._engine.pressure().queue_seconds(encoder.number, flow, "interactive")

    def _model_retired(self, model: int, why: str) -> None:
        self.repository.retire(model, why)

    def _announce(self) -> None:
        """Tell everyone who asks what can be served now: nothing at all while no device is in service."""
        for service in ("", *SERVICES[:2]):
            self._health.set(service, self._ready and self._served)
        encoders = [encoder.name for encoder in self.repository.encoders(SERVER)]
        for entry in self.repository.index(SERVER):
            serving = entry.state == "READY" and self._served
            if not entry.retired:
                self._metrics.ready(entry.name, entry.version, serving)
            brownout = self._brownouts.of(entry.name, entry.version)
            if brownout is not None:
                on = partial(_browned_out, brownout)
                self._metrics.watch_brownout(entry.name, entry.version, on)
            self._health.set(f"{entry.name}/{entry.version}", serving)
            self._health.set(entry.name, entry.name in encoders and self._served)

    def _boundaries(self, unread: Unread, tenants: Tenants) -> tuple[Boundary, Boundary]:
        """What every call passes through: of the port for clients, and of the one for admins."""
        config, refused, turns = self.config, self._metrics.refused, self._turns
        every = (self._intake, unread, tenants, config.limits.max_texts)
        authenticator = Authenticator(config.auth) if config.auth != Auth() else None
        ids = config.logging.calls or config.logging.format == "json"
        observed = Observed(self._tracing, ids=ids) if self._tracing or ids else None
        load = Load(self._engine.pressure, time.monotonic)
        elsewhere = False if config.server.admin_address else None
        guards = (Guard(authenticator, elsewhere, refused), Guard(authenticator, True, refused))
        return (
            Boundary(*every, guards[0], load, turns, observed),
            Boundary(*every, guards[1], None, turns, observed),
        )

    def _listen(self) -> tuple[grpc.aio.Server, ...]:
        config = self.config
        # The servicers' methods take what the boundary hands them, not what gRPC would.
        native, kserve, health = (cast(Any, each) for each in (self._native, self._kserve, self._health))
        server = listeners.make(config, [self._boundary])
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(native, server)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(kserve, server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        reflection.add_to(server, SERVICES)
        ports = config.server
        self.grpc_port = listeners.bind(server, ports.grpc_address, ports.tls)
        servers = [server]
        if ports.admin_address:
            servers.append(listeners.make(config, [self._admin_boundary]))
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(kserve, servers[-1])
            listeners.bind(servers[-1], ports.admin_address, ports.tls)
        if ports.health_address:
            servers.append(listeners.make_probed(config, [self._boundary]))
            health_pb2_grpc.add_HealthServicer_to_server(health, servers[-1])
            listeners.bind(servers[-1], ports.health_address, None)
        return tuple(servers)


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
