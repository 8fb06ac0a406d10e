"""What all processes that the supervisor starts have in common."""

import asyncio
import faulthandler
import logging
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from trimtab_server import config, memory, serving
from trimtab_server.config import Config
from trimtab_server.lifeline import hold, ignore_signals
from trimtab_server.observing import logs, merged
from trimtab_server.observing.metrics import Metrics
from trimtab_server.processes.child import Begin
from trimtab_server.processes.control import Answers, Peer, watch_sockets


class Program(ABC):
    """What a process does, from `begin` to `stop`, which the supervisor asks for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.supervisor = Peer(
            {
                "begin": self._begin,
                "stop": self._stop,
                "ping": _well,
                "metrics": self._collect,
                "statistics": self._count,
            }
            | dict(self.answers())
        )
        self._stopped = asyncio.Event()

    def answers(self) -> Answers:
        """What else the supervisor may ask."""
        return {}

    @abstractmethod
    async def begin(self, begin: Begin, settings: Config) -> Any:
        """Start, and return what the supervisor is to know once that is done."""

    @abstractmethod
    async def take(self, sock: socket.socket) -> None:
        """Use a socket that the supervisor has sent."""

    @abstractmethod
    async def stop(self) -> None:
        """End, after what is in flight."""

    async def run(self, control: int, channel: int) -> None:
        """Serve the supervisor until it says stop."""
        calls = socket.socket(fileno=channel)
        watch_sockets(calls, self.take)
        await self.supervisor.open(socket.socket(fileno=control))
        await self._stopped.wait()
        await self.supervisor.close()

    async def _begin(self, value: bytes) -> Any:
        begin = msgspec.msgpack.decode(value, type=Begin)
        settings = config.decode(begin.config)
        logs.configure(settings.logging, verbose=begin.verbose, process=begin.name)
        answer = await self.begin(begin, settings)
        memory.settle()
        return answer

    async def _stop(self, value: bytes) -> None:
        await self.stop()
        asyncio.get_running_loop().call_soon(self._stopped.set)

    async def _collect(self, value: bytes) -> Any:
        return merged.collected(self.registry)

    async def _count(self, value: bytes) -> Any:
        encoder, version = msgspec.msgpack.decode(value, type=tuple[str, int])
        return self.metrics.statistics(encoder, version)


async def _well(value: bytes) -> None:
    """The answer to a ping: the event loop turns."""


def main(program: Callable[[], Program]) -> None:
    """Run a program in this process: its arguments are the descriptors that Child has passed on."""
    control, channel, lifeline = map(int, sys.argv[1:])
    faulthandler.enable()  # a crash leaves the stack in the server's log
    logging.basicConfig(level=logging.WARNING)
    hold(lifeline)
    ignore_signals()
    memory.share_heaps()

    async def run() -> None:
        await program().run(control, channel)

    serving.run(run())
