"""A process of the server, as the supervisor sees it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TypeVar

import msgspec

from trimtab_server.processes.control import Answering, Peer

T = TypeVar("T")


class Begin(msgspec.Struct, frozen=True):
    """What a process is told at its start. `config` is Config as JSON; the rest is for front ends."""

    name: str
    config: bytes
    verbose: bool
    repository: str = ""
    unloaded: frozenset[str] = frozenset()


class Child:
    """One process, from its start to its end.

    It is killed by the kernel when this process ends. `answers` are for what it asks.
    """

    def __init__(self, name: str, answers: dict[str, Answering]) -> None:
        self.name = name
        self.answers = answers
        self._peer = Peer(answers)
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None
        self._lifeline = -1

    async def start(self, program: str) -> None:
        """Start the process, which runs this module. OSError if that fails."""
        control, their_control = socket.socketpair()
        self._channel, their_channel = socket.socketpair()
        read, self._lifeline = os.pipe()
        with their_control, their_channel:
            theirs = (their_control.fileno(), their_channel.fileno(), read)
            try:
                # Without the folder that the server was started in on its path: what lies there is not ours.
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", program, *map(str, theirs),
                    stdin=asyncio.subprocess.DEVNULL, stdout=2, pass_fds=theirs,
                )  # fmt: skip
            except OSError:
                self._close()
                control.close()
                raise
            finally:
                os.close(read)
        await self._peer.open(control)

    @property
    def pid(self) -> int:
        """Its process number; 0 before its start."""
        return self._process.pid if self._process is not None else 0

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def ask(self, name: str, value: object = None) -> None:
        """As Peer.ask."""
        await self._peer.ask(name, value)

    async def get(self, kind: type[T], name: str, value: object = None) -> T:
        """As Peer.get."""
        return await self._peer.get(kind, name, value)

    def send(self, sock: socket.socket) -> None:
        """Give it a socket, whose copy here is closed. Nothing happens if it is gone."""
        with sock, contextlib.suppress(OSError):
            if self._channel is not None:
                socket.send_fds(self._channel, [b"s"], [sock.fileno()])

    async def ended(self) -> str:
        """Wait until it has ended. Returns how."""
        if self._process is None:
            return "was not started"
        status = await self._process.wait()
        await self._peer.close()
        self._close()
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
