"""Starts the engine's process and the front ends' processes, replaces those that end, and speaks for all."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from prometheus_client import CollectorRegistry

from trimtab_server import config as configuration
from trimtab_server.catalog.polling import Poller
from trimtab_server.config import Config
from trimtab_server.observing import uptime
from trimtab_server.observing.merged import MergedMetrics, Series
from trimtab_server.observing.metrics import Statistics
from trimtab_server.observing.scrapes import Scrapes
from trimtab_server.processes import ports
from trimtab_server.processes.child import Begin, Child
from trimtab_server.processes.control import ProcessGone
from trimtab_server.processes.together import Together

log = logging.getLogger(__name__)

T = TypeVar("T")
ENGINE = "trimtab_server.processes.engine"
FRONT_END = "trimtab_server.processes.front_end"
# How long a process may take to answer a scrape. If it does not, its last figures are used again.
SCRAPE_SECONDS = 2.0
# A process that does not answer for so long hangs, and is killed; and how often it is asked.
HANG_SECONDS, PING_SECONDS = 10.0, 1.0
# How long processes may take to say that they have drained, and then to end.
STOP_SECONDS, END_SECONDS = 2.0, 3.0
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
        self._repository = repository
        self._verbose = verbose
        self._engine_program = engine
        self._reserved: list[socket.socket] = []
        self._front_ends: dict[int, Child] = {}
        self._engine: Child | None = None  # once it has begun
        self._spare: Child | None = None  # a front end that has not begun
        self._together = Together(self._front_ends)
        self._poller = Poller(
            repository, self._together.load, config.versions.poll_seconds, config.engine.load_seconds
        )
        self._merged = MergedMetrics()
        registry = CollectorRegistry()
        registry.register(self._merged)
        self._scrapes = Scrapes(registry, self._refresh)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def served(self) -> list[tuple[str, int]]:
        """Names and versions of the encoders that were ready at the start."""
        return [(name, version) for name, version, _ in self._together.served]

    async def start(self) -> None:
        """Start all processes; returns when all front ends serve. ConfigError if they cannot."""
        self.config = self._reserve(self.config)
        self.metrics_port = await self._scrapes.start(self.config.server.metrics_address)
        engine = await self._start_engine()
        numbers = range(1, self.config.server.frontends + 1)
        async with self._together.alone():
            front_ends = await asyncio.gather(*map(self._start_front_end, numbers))
        self._run(self._replace(engine, self._start_engine))
        for number, child in zip(numbers, front_ends, strict=True):
            self._run(self._replace(child, partial(self._take_in, number)))
        await self._have_spare()
        self._poller.start()
        log.info("ready after %.2f s, with %d front ends", uptime.seconds(), len(front_ends))

    async def stop(self) -> None:
        """Drain the front ends, then end all processes. Takes hardly longer than `drain_seconds`."""
        self._poller.stop()
        for task in self._tasks:
            task.cancel()
        if self._spare is not None:
            self._spare.kill()
            await self._spare.ended()
        drain = self.config.server.drain_seconds
        await asyncio.gather(*(self._end(each, drain) for each in self._front_ends.values()))
        if self._engine is not None:
            await self._end(self._engine, 0.0)
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
                self._reserved += reserved
        self.grpc_port = configuration.split_address(addresses["grpc_address"])[1]
        return msgspec.structs.replace(config, server=msgspec.structs.replace(server, **addresses))

    async def _start_engine(self) -> Child:
        self._engine = None
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
            configuration.encode(_divided(self.config)),
            self._verbose,
            str(self._repository),
            self._together.unloaded,
        )
        self._front_ends[number] = child
        self._connect(child)
        async with _killed_on_error(child):
            self._together.joined(child, await child.get(list[tuple[str, int, str]], "begin", begin))
        return child

    async def _take_in(self, number: int) -> Child:
        """Start a front end beside others, which do not load or unload anything meanwhile."""
        async with self._together.alone():
            child = await self._start_front_end(number)
            await self._together.agree()
        return child

    async def _started(self, name: str, program: str) -> Child:
        """A process that has not begun yet."""
        together = self._together
        child = Child(name, {})
        child.answers |= {
            "load": together.load_for, "unload": together.unload_for, "statistics": self._statistics,
            "engine": lambda value: self._reconnect(child),
        }  # fmt: skip
        await child.start(program)
        self._run(self._ping(child))
        return child

    async def _have_spare(self) -> None:
        """Have a front end's process ready, since an interpreter takes a second to start."""
        if self._spare is None or not self._spare.runs:
            with contextlib.suppress(OSError):
                self._spare = await self._started("spare front end", FRONT_END)

    def _connect(self, front_end: Child) -> None:
        """Give a front end and the engine a socket to each other, if there is an engine."""
        if self._engine is not None and self._engine.runs:
            one, other = socket.socketpair()
            self._engine.send(one)
            front_end.send(other)

    async def _reconnect(self, front_end: Child) -> None:
        self._connect(front_end)

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

    async def _ping(self, child: Child) -> None:
        """Kill a process that hangs. Its replacement is another task's."""
        with contextlib.suppress(ProcessGone):
            while True:
                asked = asyncio.ensure_future(child.ask("ping"))
                # The second wait is for an answer that came while this process itself was stopped.
                for seconds in (HANG_SECONDS, PING_SECONDS):
                    await asyncio.wait((asked,), timeout=seconds)
                if not asked.done():
                    asked.cancel()
                    log.error(
                        "%s (process %d) has not answered for %g s: killing it", child.name, child.pid,
                        HANG_SECONDS,
                    )  # fmt: skip
                    child.kill()
                    return
                await asked
                await asyncio.sleep(PING_SECONDS)

    async def _end(self, child: Child, drain: float) -> None:
        """Let a process drain and end; kill it if it does not."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(drain + STOP_SECONDS):
                await child.ask("stop")
        try:
            async with asyncio.timeout(END_SECONDS):
                await child.ended()
        except TimeoutError:
            child.kill()
            await child.ended()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what is asked of all processes ------------------------------------------------------------------

    async def _statistics(self, value: bytes) -> Statistics:
        key, whole = msgspec.msgpack.decode(value, type=tuple[str, int]), Statistics()
        for child in self._children():
            with contextlib.suppress(ProcessGone):
                whole.join(await child.get(Statistics, "statistics", key))
        return whole

    async def _refresh(self) -> None:
        """Get the metrics of all processes."""

        async def ask(child: Child) -> None:
            with contextlib.suppress(ProcessGone, TimeoutError):
                async with asyncio.timeout(SCRAPE_SECONDS):
                    self._merged.put(child.name, await child.get(list[Series], "metrics"))

        await asyncio.gather(*map(ask, self._children()))

    def _children(self) -> list[Child]:
        return [*self._front_ends.values(), *([self._engine] if self._engine else [])]


@contextlib.asynccontextmanager
async def _killed_on_error(child: Child) -> AsyncIterator[None]:
    """A process that does not begin is ended."""
    try:
        yield
    except BaseException:
        child.kill()
        await child.ended()
        raise


def _divided(config: Config) -> Config:
    """The configuration of one front end: its part of the limits of memory and calls."""
    limits, parts = config.limits, config.server.frontends
    return msgspec.structs.replace(
        config,
        limits=msgspec.structs.replace(
            limits,
            max_calls=-(-limits.max_calls // parts),
            max_received_bytes=max(limits.max_received_bytes // parts, limits.max_message_bytes),
            max_unread_bytes=-(-limits.max_unread_bytes // parts),
        ),
    )
