"""A front end's process: the whole way from the port to the tokenizer, and from the vectors to the answer.

python -m trimtab_server.processes.front_end CONTROL CHANNEL LIFELINE
"""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Literal

import msgspec

from trimtab.errors import TrimtabError
from trimtab_server.app import App
from trimtab_server.callers.access import SERVER
from trimtab_server.config import Config
from trimtab_server.engine.remote.rehearsing import RemoteRehearsals
from trimtab_server.engine.remote.remote import RESTART_SECONDS, RemoteEngine
from trimtab_server.group import Group
from trimtab_server.observing.metrics import Statistics
from trimtab_server.processes import program
from trimtab_server.processes.child import Begin
from trimtab_server.processes.control import Answers
from trimtab_server.processes.together import Loaded, Served


class FrontEndProgram(program.Program):
    """One App of several, over one engine."""

    def __init__(self) -> None:
        super().__init__()
        self._engine = RemoteEngine(self._engine_lost)
        self._app: App | None = None
        self._asking: asyncio.Task[None] | None = None

    def answers(self) -> Answers:
        """Loads and unloads, which all front ends do."""
        return {"load": self._load, "unload": self._unload}

    async def begin(self, begin: Begin, settings: Config) -> Served:
        """Load everything, then listen. Returns what is served."""
        await self._engine.connected()
        group = Group(
            self._engine, RemoteRehearsals(self._engine), self.metrics, self.registry,
            self._everywhere, self._statistics, begin.unloaded,
        )  # fmt: skip
        self._app = App(settings, Path(begin.repository), group=group)
        await self._app.start()
        return self._served(self._app)

    async def take(self, sock: socket.socket) -> None:
        """The engine's, which may be another one than before."""
        await self._engine.connect(sock)

    async def stop(self) -> None:
        """Drain."""
        if self._app is not None:
            await self._app.stop()
        await self._engine.close()

    def _served(self, app: App) -> Served:
        encoders = app.repository.encoders(SERVER)
        return [(each.name, each.version, each.manifest.space) for each in encoders]

    async def _everywhere(self, what: Literal["load", "unload"], encoder: str) -> None:
        await self.supervisor.ask(what, encoder)

    async def _statistics(self, encoder: str, version: int) -> Statistics:
        return await self.supervisor.get(Statistics, "statistics", (encoder, version))

    async def _load(self, value: bytes) -> Loaded:
        encoder = msgspec.msgpack.decode(value, type=str)
        if self._app is None:
            return Loaded([])
        await self._app.repository.load_here(encoder)
        return Loaded(self._served(self._app), self._app.repository.problems(encoder))

    async def _unload(self, value: bytes) -> Loaded:
        if self._app is None:
            return Loaded([])
        await self._app.repository.unload_here(msgspec.msgpack.decode(value, type=str))
        return Loaded(self._served(self._app))

    def _engine_lost(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask_for_engine())

    async def _ask_for_engine(self) -> None:
        """The supervisor connects front ends with the next engine; but if only the connection has ended, it
        has to be asked."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESTART_SECONDS):
                    await self._engine.connected()
                    return
            with contextlib.suppress(TrimtabError):
                await self.supervisor.ask("engine")


if __name__ == "__main__":
    program.main(FrontEndProgram)
