"""A front end's process: the whole way from the port to the tokenizer, and from the vectors to the answer.

python -m trimtab_server.processes.front_end CONTROL CHANNEL LIFELINE
"""

import socket
from pathlib import Path
from typing import Any, Literal

import msgspec

from trimtab_server.app import App
from trimtab_server.config import Config
from trimtab_server.engine.remote.rehearsing import RemoteRehearsals
from trimtab_server.engine.remote.remote import RemoteEngine
from trimtab_server.group import Group
from trimtab_server.observing.metrics import Statistics
from trimtab_server.processes import program
from trimtab_server.processes.child import Begin
from trimtab_server.processes.control import Answers


class FrontEndProgram(program.Program):
    """One App of several, over one engine."""

    def __init__(self) -> None:
        super().__init__()
        self._engine = RemoteEngine()
        self._app: App | None = None

    def answers(self) -> Answers:
        """Loads and unloads, which all front ends do."""
        return {"load": self._load, "unload": self._unload}

    async def begin(self, begin: Begin, settings: Config) -> list[tuple[str, int]]:
        """Load everything, then listen. Returns names and versions of what is served."""
        await self._engine.connected()
        group = Group(
            self._engine, RemoteRehearsals(self._engine), self.metrics, self.registry,
            self._everywhere, self._statistics, begin.unloaded, begin.polls,
        )  # fmt: skip
        self._app = App(settings, Path(begin.repository), group=group)
        await self._app.start()
        return self._app.served

    async def take(self, sock: socket.socket) -> None:
        """The engine's, which may be another one than before."""
        await self._engine.connect(sock)

    async def stop(self) -> None:
        """Drain."""
        if self._app is not None:
            await self._app.stop()
        await self._engine.close()

    async def _everywhere(self, what: Literal["load", "unload"], encoder: str) -> None:
        await self.supervisor.ask(what, encoder)

    async def _statistics(self, encoder: str, version: int) -> Statistics:
        return await self.supervisor.get(Statistics, "statistics", (encoder, version))

    async def _load(self, value: bytes) -> None:
        if self._app is not None:  # if not, it will load what it finds when it begins
            await self._app.repository.load_here(msgspec.msgpack.decode(value, type=str))

    async def _unload(self, value: bytes) -> Any:
        if self._app is not None:
            await self._app.repository.unload_here(msgspec.msgpack.decode(value, type=str))


if __name__ == "__main__":
    program.main(FrontEndProgram)
