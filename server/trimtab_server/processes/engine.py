"""The engine's process: devices, queue and admission, for the front ends' processes.

python -m trimtab_server.processes.engine CONTROL CHANNEL LIFELINE
"""

import asyncio
import socket
from collections.abc import Sequence

from trimtab_server.config import Config
from trimtab_server.engine.configured import OwnEngine
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place, parse
from trimtab_server.engine.remote.host import EngineHost
from trimtab_server.engine.remote.rehearsing import SharedRehearsals
from trimtab_server.processes import program
from trimtab_server.processes.child import Begin


class EngineProgram(program.Program):
    """Serves front ends over the sockets that come.

    `opening` and `places` are as App's.
    """

    def __init__(
        self,
        opening: Opening = Opening(),  # noqa: B008  # it is frozen
        places: Sequence[Place] | None = None,
    ) -> None:
        super().__init__()
        self._opening = opening
        self._places = places
        self._own: OwnEngine | None = None
        self._host: asyncio.Future[EngineHost] = asyncio.get_running_loop().create_future()

    async def begin(self, begin: Begin, settings: Config) -> None:
        """Start the devices."""
        own = self._own = OwnEngine(
            settings, self._opening, self._places or parse(settings.devices), self.metrics,
            serving=self._serving, retired=self._retired,
        )  # fmt: skip
        rehearsals = own.rehearsals
        shared = SharedRehearsals(rehearsals, settings.engine.load_seconds) if rehearsals else None
        self._host.set_result(EngineHost(own.engine, shared, self.metrics.forget))
        own.start()

    async def take(self, sock: socket.socket) -> None:
        """A front end's."""
        await (await self._host).connect(sock)

    async def stop(self) -> None:
        """Stop the devices; the front ends have ended."""
        if self._own is not None:
            await self._host.result().close()
            await asyncio.to_thread(self._own.stop)

    def _serving(self, up: bool) -> None:
        self._host.result().serving(up)

    def _retired(self, model: int, why: str) -> None:
        self._host.result().retired(model, why)


if __name__ == "__main__":
    program.main(EngineProgram)
