"""Starts the engine's process and the front ends' processes, replaces those that end, and speaks for all."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry

from trimtab.errors import NotFound, TrimtabError
from trimtab_server import config as configuration
from trimtab_server.config import Config
from trimtab_server.observing import uptime
from trimtab_server.observing.merged import MergedMetrics, Series
from trimtab_server.observing.metrics import Statistics
from trimtab_server.observing.scrapes import Scrapes
from trimtab_server.processes import ports
from trimtab_server.processes.child import Begin, Child
from trimtab_server.processes.control import ProcessGone

log = logging.getLogger(__name__)

ENGINE = "trimtab_server.processes.engine"
FRONT_END = "trimtab_server.processes.front_end"
# How long a process may take to answer a scrape. If it does not, its last figures are used again.
SCRAPE_SECONDS = 2.0
# How long a process may take to end, once it has drained.
END_SECONDS = 10.0
# A process that ends is replaced after a pause, which grows if it keeps ending within WELL_SECONDS.
PAUSES, WELL_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0), 60.0


class Supervisor:
    """A server of several processes: `start`, then `serve` until it is told to stop, then `stop`.

    The kernel spreads connections over the front ends. Loads, unloads, metrics and statistics go through
    here, so that they mean the same as with one process. `engine` is the module that the engine's process
    runs.
    """

    def __init__(
        self, config: Config, repository: Path, *, verbose: bool = False, engine: str = ENGINE
    ) -> None:
        self.config = config
        self.grpc_port = self.metrics_port = 0
        self.served: list[tuple[str, int]] = []  # names and versions, at the start
        self._repository = repository
        self._verbose = verbose
        self._engine_program = engine
        self._reserved: list[socket.socket] = []
        self._front_ends: dict[int, Child] = {}
        self._engine: Child | None = None
        self._spare: Child | None = None  # a front end that has not begun
        self._unloaded: set[str] = set()  # by clients
        self._merged = MergedMetrics()
        registry = CollectorRegistry()
        registry.register(self._merged)
        self._scrapes = Scrapes(registry, self._refresh)
        self._keeping: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self) -> None:
        """Start all processes; returns when all front ends serve. ConfigError if they cannot."""
        self.config = self._reserve(self.config)
        self.metrics_port = await self._scrapes.start(self.config.server.metrics_address)
        engine = await self._start_engine()
        numbers = range(1, self.config.server.frontends + 1)
        front_ends = await asyncio.gather(*map(self._start_front_end, numbers))
        self._keep(engine, self._start_engine)
        for number, child in zip(numbers, front_ends, strict=True):
            self._keep(child, partial(self._start_front_end, number))
        await self._have_spare()
        log.info("ready after %.2f s, with %d front ends", uptime.seconds(), len(front_ends))

    async def stop(self) -> None:
        """Drain the front ends, then end all processes. Bounded by `drain_seconds`."""
        self._stopping = True
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*map(self._end, self._front_ends.values()))
        if self._spare is not None:
            self._spare.kill()
            await self._spare.ended()
        if self._engine is not None:
            await self._end(self._engine)
        self._scrapes.stop()
        for reserved in self._reserved:
            reserved.close()

    # -- processes ---------------------------------------------------------------------------------------

    def _reserve(self, config: Config) -> Config:
        """Reserve the ports, and write them into the configuration."""
        server, addresses = config.server, dict[str, str]()
        for name in ("grpc_address", "admin_address", "health_address"):
            if getattr(server, name):
                reserved, addresses[name] = ports.reserve(getattr(server, name))
                self._reserved.append(reserved)
        self.grpc_port = configuration.split_address(addresses["grpc_address"])[1]
        return msgspec.structs.replace(config, server=msgspec.structs.replace(server, **addresses))

    async def _start_engine(self) -> Child:
        child = await self._started("engine", self._engine_program)
        async with _killed_on_error(child):
            await child.ask("begin", Begin("engine", configuration.encode(self.config), self._verbose))
        self._engine = child
        for front_end in self._front_ends.values():
            self._connect(front_end)
        return child

    async def _start_front_end(self, number: int) -> Child:
        child, self._spare = self._spare, None
        if child is None or not child.runs:
            child = await self._started("", FRONT_END)
        child.name = f"front end {number}"
        begin = Begin(
            child.name,
            configuration.encode(_shared_out(self.config)),
            self._verbose,
            str(self._repository),
            polls=number == 1,
            unloaded=frozenset(self._unloaded),
        )
        self._front_ends[number] = child
        self._connect(child)
        async with _killed_on_error(child):
            self.served = await child.get(list[tuple[str, int]], "begin", begin)
        return child

    async def _started(self, name: str, program: str) -> Child:
        """A process that has not begun yet."""
        child = Child(name, {"load": self._load, "unload": self._unload, "statistics": self._statistics})
        await child.start(program)
        return child

    async def _have_spare(self) -> None:
        """Have a front end's process ready, since an interpreter takes a second to start."""
        if self._spare is None:
            with contextlib.suppress(OSError):
                self._spare = await self._started("spare front end", FRONT_END)

    def _connect(self, front_end: Child) -> None:
        """Give a front end and the engine a socket to each other."""
        if self._engine is not None:
            one, other = socket.socketpair()
            self._engine.send(one)
            front_end.send(other)

    def _keep(self, child: Child, start: Callable[[], Awaitable[Child]]) -> None:
        self._keeping.append(asyncio.create_task(self._replace(child, start)))

    async def _replace(self, child: Child, start: Callable[[], Awaitable[Child]]) -> None:
        """Replace a process whenever it has ended."""
        failures = 0
        while True:
            begun = time.monotonic()
            log.error("%s (process %d) %s: starting another", child.name, child.pid, await child.ended())
            self._merged.gone(child.name)
            failures = 0 if time.monotonic() - begun > WELL_SECONDS else failures + 1
            replaced = False
            while not replaced:
                await asyncio.sleep(PAUSES[min(failures - 1, len(PAUSES) - 1)] if failures else 0.0)
                try:
                    child = await start()
                    replaced = True
                except Exception as error:  # nobody would notice if this task ended
                    failures += 1
                    log.error("%s could not be replaced: %s", child.name, error)
                await self._have_spare()

    async def _end(self, child: Child) -> None:
        """Let a process drain and end; kill it if it does not."""
        seconds = self.config.server.drain_seconds + END_SECONDS
        with contextlib.suppress(TimeoutError, TrimtabError):
            async with asyncio.timeout(seconds):
                await child.ask("stop")
        try:
            async with asyncio.timeout(END_SECONDS):
                await child.ended()
        except TimeoutError:
            child.kill()
            await child.ended()

    # -- what all front ends do together -------------------------------------------------------------------

    async def _load(self, value: bytes) -> None:
        encoder = msgspec.msgpack.decode(value, type=str)
        self._unloaded.discard(encoder)
        for error in _errors(await self._ask_all("load", encoder)):
            raise error

    async def _unload(self, value: bytes) -> None:
        encoder = msgspec.msgpack.decode(value, type=str)
        outcomes = await self._ask_all("unload", encoder)
        errors = _errors(outcomes)
        if errors and (
            len(errors) == len(outcomes) or not all(isinstance(each, NotFound) for each in errors)
        ):
            raise errors[0]
        self._unloaded.add(encoder)

    async def _statistics(self, value: bytes) -> Statistics:
        key, whole = msgspec.msgpack.decode(value, type=tuple[str, int]), Statistics()
        children = [*self._front_ends.values(), *([self._engine] if self._engine else [])]
        for child in children:
            with contextlib.suppress(ProcessGone):
                whole.join(await child.get(Statistics, "statistics", key))
        return whole

    async def _ask_all(self, what: str, value: str) -> list[BaseException | None]:
        asked = [child.ask(what, value) for child in self._front_ends.values()]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    async def _refresh(self) -> None:
        """Get the metrics of all processes."""
        children = [*self._front_ends.values(), *([self._engine] if self._engine else [])]

        async def ask(child: Child) -> None:
            with contextlib.suppress(ProcessGone, TimeoutError):
                async with asyncio.timeout(SCRAPE_SECONDS):
                    self._merged.put(child.name, await child.get(list[Series], "metrics"))

        await asyncio.gather(*map(ask, children))


@contextlib.asynccontextmanager
async def _killed_on_error(child: Child) -> AsyncIterator[None]:
    """A process that does not begin is ended."""
    try:
        yield
    except BaseException:
        child.kill()
        await child.ended()
        raise


def _errors(outcomes: Sequence[BaseException | None]) -> list[Exception]:
    """What went wrong. A process that is gone is no error: its replacement begins with what is on disk."""
    return [each for each in outcomes if isinstance(each, Exception) and not isinstance(each, ProcessGone)]


def _shared_out(config: Config) -> Config:
    """The configuration of one front end: its share of the limits of memory and calls."""
    limits, share = config.limits, config.server.frontends
    return msgspec.structs.replace(
        config,
        limits=msgspec.structs.replace(
            limits,
            max_calls=-(-limits.max_calls // share),
            max_received_bytes=max(limits.max_received_bytes // share, limits.max_message_bytes),
            max_unread_bytes=-(-limits.max_unread_bytes // share),
        ),
    )
