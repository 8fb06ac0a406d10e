"""The engine of a process, for the front ends in other processes; remote.py is the other side."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from socket import socket
from typing import Any

from trimtab.errors import NotFound
from trimtab_server.engine.batch import Model
from trimtab_server.engine.port import AdmissionRequest, ComputeRequest, EnginePort, Pressure
from trimtab_server.engine.remote import messages
from trimtab_server.engine.remote.messages import ToEngine
from trimtab_server.engine.remote.rehearsing import SharedRehearsals
from trimtab_server.engine.runners import frames
from trimtab_server.engine.runners.rehearsal import RehearsalResult
from trimtab_server.link import Link

# How often front ends are told the state of the queue, while anything is in flight.
PRESSURE_SECONDS = 0.01


@dataclass(eq=False, slots=True)
class _Shared:
    """A model that is loaded, or being loaded, and how many uses front ends make of it."""

    number: "asyncio.Task[int]"
    uses: int = 0


@dataclass(eq=False, slots=True)
class _FrontEnd:
    """One connected front end, and what it holds."""

    link: Link[ToEngine]
    models: Counter[bytes] = field(default_factory=Counter)  # by their keys
    admitted: dict[int, int] = field(default_factory=dict)  # its numbers, and the engine's
    calls: dict[int, "asyncio.Task[None]"] = field(default_factory=dict)


class EngineHost:
    """Does with an engine what connected front ends ask. For one event loop.

    A model that several front ends load is loaded once, and unloaded when none uses it any more. What a front
    end holds is released when it is gone.
    """

    def __init__(self, engine: EnginePort, rehearsals: SharedRehearsals | None) -> None:
        self._engine = engine
        self._rehearsals = rehearsals
        self._front_ends: set[_FrontEnd] = set()
        self._shared: dict[bytes, _Shared] = {}
        self._keys: dict[int, bytes] = {}  # of loaded models, by the engine's numbers
        self._up = True
        self._told = Pressure()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def connect(self, sock: socket) -> None:
        """Serve the front end behind this socket until it is gone."""
        link: Link[ToEngine] = Link(
            messages.encode,
            messages.decode_to_engine,
            lambda message: self._received(front, message),
            lambda: self._gone(front),
        )
        front = _FrontEnd(link)
        await link.open(sock)
        self._front_ends.add(front)
        link.send(messages.Serving(self._up))
        link.send(messages.Pressed(self._told))

    async def close(self) -> None:
        """Let go of all front ends, and of what they hold."""
        await asyncio.gather(*(front.link.close() for front in self._front_ends))
        await asyncio.gather(*self._tasks)

    def serving(self, up: bool) -> None:
        """Tell all front ends whether any device is in service."""
        self._up = up
        self._tell(messages.Serving(up))

    def retired(self, model: int, why: str) -> None:
        """Tell all front ends that a model is no longer run."""
        self._tell(messages.Retired(model, why))

    def _tell(self, message: Any) -> None:
        for front in self._front_ends:
            front.link.send(message)

    def _received(self, front: _FrontEnd, message: ToEngine) -> None:
        if isinstance(message, messages.Compute):
            self._start(front, message.call, self._compute(front, message))
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(PRESSURE_SECONDS, self._press)
        elif isinstance(message, messages.Release):
            admitted = front.admitted.pop(message.admitted, None)
            if admitted is not None:
                self._engine.release(admitted, answered=message.answered)
        elif isinstance(message, messages.Admit):
            self._start(front, message.call, self._admit(front, message))
        elif isinstance(message, messages.Cancel):
            task = front.calls.get(message.call)
            if task is not None:
                task.cancel()
        elif isinstance(message, messages.Load):
            self._start(front, message.call, self._load(front, message))
        elif isinstance(message, messages.Unload):
            self._start(front, message.call, self._unload(front, message))
        else:
            self._start(front, message.call, self._rehearse(front, message))

    def _start(self, front: _FrontEnd, call: int, work: Awaitable[Any]) -> None:
        """Do what a call asks, and send what it returns, or the error that it raises."""
        task = front.calls[call] = asyncio.ensure_future(self._do(front, call, work))
        task.add_done_callback(lambda _: front.calls.pop(call, None))

    async def _do(self, front: _FrontEnd, call: int, work: Awaitable[Any]) -> None:
        try:
            answer = await work
        except Exception as error:
            answer = messages.failed(call, error)
        front.link.send(answer)

    async def _compute(self, front: _FrontEnd, message: messages.Compute) -> messages.Answer:
        if message.tokens >= 0:
            asked = AdmissionRequest(message.model, message.turn, message.tokens, message.held)
            front.admitted[message.admitted] = await self._engine.admit(asked)
        admitted = front.admitted.get(message.admitted, 0)
        if message.admitted and not admitted:
            raise NotFound("the request was admitted by an engine that is gone; try again")
        work = ComputeRequest(admitted, message.model, message.turn, message.payloads, message.wanted)
        return messages.Answer(message.call, await self._engine.compute(work))

    async def _admit(self, front: _FrontEnd, message: messages.Admit) -> messages.Done:
        asked = AdmissionRequest(message.model, message.turn, message.tokens, message.held)
        front.admitted[message.admitted] = await self._engine.admit(asked)
        return messages.Done(message.call)

    async def _load(self, front: _FrontEnd, message: messages.Load) -> messages.Done:
        key = message.model
        shared = self._shared.get(key)
        if shared is None:
            model = frames.decode(key, Model)
            shared = self._shared[key] = _Shared(asyncio.ensure_future(self._engine.load(model)))
        shared.uses += 1
        front.models[key] += 1
        try:
            number = await asyncio.shield(shared.number)
        except BaseException:
            if front in self._front_ends:  # otherwise it was let go of when it left
                self._let_go(front, key)
            raise
        self._keys[number] = key
        return messages.Done(message.call, number)

    async def _unload(self, front: _FrontEnd, message: messages.Unload) -> messages.Done:
        key = self._keys.get(message.model)
        if key is not None and front.models[key]:
            done = self._let_go(front, key)
            if done is not None:
                await asyncio.shield(done)
        return messages.Done(message.call)

    async def _rehearse(self, front: _FrontEnd, message: messages.Rehearse) -> messages.Rehearsed:
        if self._rehearsals is None:  # its graphs are not foreign
            return messages.Rehearsed(message.call, frames.encode(RehearsalResult()))
        return messages.Rehearsed(message.call, await self._rehearsals.rehearse(message.piece))

    def _let_go(self, front: _FrontEnd, key: bytes) -> "asyncio.Task[None] | None":
        """A front end makes one use less of a model. If it was the last of all, the task that unloads it."""
        front.models[key] -= 1
        shared = self._shared[key]
        shared.uses -= 1
        if shared.uses:
            return None
        del self._shared[key]
        task = asyncio.ensure_future(self._forget(shared.number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _forget(self, loading: "asyncio.Task[int]") -> None:
        try:
            number = await loading
        except Exception:  # it was never loaded; who asked for it was told why
            return
        self._keys.pop(number, None)
        await self._engine.unload(number)

    def _gone(self, front: _FrontEnd) -> None:
        self._front_ends.discard(front)
        for task in list(front.calls.values()):
            task.cancel()
        for admitted in front.admitted.values():
            self._engine.release(admitted, answered=False)
        front.admitted.clear()
        for key in list(front.models.elements()):
            self._let_go(front, key)

    def _press(self) -> None:
        """Tell front ends the state of the queue, as long as it changes."""
        self._timer = None
        pressure = self._engine.pressure()
        if pressure != self._told:
            self._told = pressure
            self._tell(messages.Pressed(pressure))
        if any(front.calls for front in self._front_ends):
            self._timer = asyncio.get_running_loop().call_later(PRESSURE_SECONDS, self._press)
