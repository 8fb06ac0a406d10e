"""The front end for gRPC: its ports, what every call passes through, and the services behind it."""

import asyncio
import time
from functools import partial
from typing import Any, cast

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from trimtab.v1 import encoder_pb2, encoder_pb2_grpc
from trimtab_server.callers.auth import Authenticator
from trimtab_server.config import Auth, Config
from trimtab_server.fronts.grpc import listeners, reflection, sockets
from trimtab_server.fronts.grpc.arriving import Arriving
from trimtab_server.fronts.grpc.boundary import Boundary
from trimtab_server.fronts.grpc.entrance import Entrance
from trimtab_server.fronts.grpc.guard import Guard
from trimtab_server.fronts.grpc.health import Health
from trimtab_server.fronts.grpc.intake import Intake
from trimtab_server.fronts.grpc.kserve import KServeServicer
from trimtab_server.fronts.grpc.lobby import Lobby
from trimtab_server.fronts.grpc.native import NativeServicer
from trimtab_server.fronts.grpc.newcomers import Newcomers
from trimtab_server.fronts.grpc.observed import CallObserver
from trimtab_server.fronts.grpc.pace import Pacer
from trimtab_server.fronts.grpc.senders import Tenants
from trimtab_server.fronts.grpc.stream import Streams
from trimtab_server.fronts.grpc.unread import Unread
from trimtab_server.observing.load import Load
from trimtab_server.observing.tracing import Tracing
from trimtab_server.policies.trials import Trials
from trimtab_server.tasks.embed import Embedder
from trimtab_server.tasks.pipeline import Pipeline
from trimtab_server.tasks.rescore import Rescorer

# After the last call is answered: calls that still arrive are told to try another server. gRPC's own stop
# would cancel them, and a client may not retry cancelled calls.
LATE_SECONDS = 0.3
# On stop: time for the last bytes to leave.
FLUSH_SECONDS = 1.0
# Between two checks for clients that do not read their answers.
UNREAD_SECONDS = 1.0
# The services of the gRPC server. Health reports them under these names.
NATIVE = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"].full_name
KSERVE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class GrpcFrontEnd:
    """Listens and answers calls from `start` to `stop`.

    `tell` sets what health reports, for the server as a whole ("") and for each encoder.
    """

    def __init__(
        self,
        config: Config,
        pipeline: Pipeline,
        embedder: Embedder,
        rescorer: Rescorer,
        trials: Trials,
        tracing: Tracing | None = None,
    ) -> None:
        self._config = config
        limits = config.limits
        self._health = Health()
        self._pace = Pacer()
        self._arriving = Arriving(
            limits.max_received_bytes, refused=self._pace.refuse, in_advance=listeners.in_advance(limits)
        )
        self._intake = Intake(limits.max_calls, limits.max_received_bytes, self._arriving)
        self._unread = Unread(limits.max_unread_bytes, limits.max_unread_seconds, sockets.hang_up)
        self._streams = Streams(limits.max_stream_texts, self._unread)
        self._entrance, self._admin_entrance = self._entrances(pipeline, tracing)
        self._native = NativeServicer(pipeline, embedder, rescorer, trials, self._streams)
        self._kserve = KServeServicer(pipeline, embedder, self._streams, lambda: self._health.serving)
        self._watching: list[asyncio.Task[None]] = []
        self.port = 0
        self._servers: list[grpc.aio.Server] = []

    def tell(self, service: str, serving: bool) -> None:
        """Set whether an encoder serves, by NAME or NAME/VERSION; "" is the whole server, with both
        services."""
        for each in (service,) if service else ("", NATIVE, KSERVE):
            self._health.set(each, serving)

    async def start(self) -> None:
        """Listen, and answer calls. ConfigError if an address cannot be used."""
        self.port, self._servers = self._listen()
        newcomers = Newcomers(
            self._config.limits.max_connections,
            sockets.open_files,
            partial(sockets.connected, self.port),
            lambda: {address for peer in self._intake.used() if (address := sockets.named(peer))},
            sockets.shut_down,
        )
        watches = (self._arriving.watch(), self._watch_unread(), newcomers.watch())
        self._watching = [asyncio.create_task(each) for each in watches]
        for server in self._servers:
            await server.start()

    async def drain(self, seconds: float) -> None:
        """Refuse new calls, and wait at most so many seconds until the open ones are answered."""
        self._health.drain()
        self._streams.drain()
        await asyncio.gather(self._entrance.drain(seconds), self._admin_entrance.drain(seconds))
        await asyncio.sleep(min(LATE_SECONDS, seconds))

    async def stop(self) -> None:
        """Close every connection."""
        for watching in self._watching:
            watching.cancel()
        await asyncio.gather(*(server.stop(FLUSH_SECONDS) for server in self._servers))

    async def _watch_unread(self) -> None:
        while True:
            await asyncio.sleep(UNREAD_SECONDS)
            self._unread.end_slow()

    def _entrances(self, pipeline: Pipeline, tracing: Tracing | None) -> tuple[Entrance, Entrance]:
        """What every call passes through: one entrance for the clients' port, one for the admins'."""
        config, refused = self._config, pipeline.metrics.refused
        tenants = Tenants(config.server.tenant_header)
        every = (self._intake, self._unread, tenants)
        authenticator = Authenticator(config.auth) if config.auth != Auth() else None
        ids = config.logging.calls or config.logging.format == "json"
        observed = CallObserver(tracing, ids=ids) if tracing or ids else None
        load = Load(pipeline.engine.pressure, time.monotonic)
        elsewhere = False if config.server.admin_address else None
        guards = (Guard(authenticator, elsewhere, refused), Guard(authenticator, True, refused))
        lobby = Lobby(pipeline.turns)
        make = partial(
            Entrance, *every, turns=pipeline.turns, pace=self._pace, observed=observed, lobby=lobby
        )
        return make(guards[0], load), make(guards[1])

    def _listen(self) -> tuple[int, list[grpc.aio.Server]]:
        """The clients' port, and the servers, bound to their addresses."""
        config, ports = self._config, self._config.server
        # The servicers' methods take the boundary's arguments, not gRPC's.
        native, kserve, health = (cast(Any, each) for each in (self._native, self._kserve, self._health))
        limits = config.limits
        boundary, admin = (
            Boundary(each, limits.max_texts, limits.max_message_bytes)
            for each in (self._entrance, self._admin_entrance)
        )
        server = listeners.make(config, [boundary])
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(native, server)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(kserve, server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        reflection.add_to(server, (NATIVE, KSERVE, HEALTH))
        port, servers = listeners.bind(server, ports.grpc_address, ports.tls), [server]
        if ports.admin_address:
            servers.append(listeners.make(config, [admin]))
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(kserve, servers[-1])
            listeners.bind(servers[-1], ports.admin_address, ports.tls)
        if ports.health_address:
            servers.append(listeners.make_probed(config, [boundary]))
            health_pb2_grpc.add_HealthServicer_to_server(health, servers[-1])
            listeners.bind(servers[-1], ports.health_address, None)
        return port, servers
