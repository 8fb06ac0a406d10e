"""The engine of a process, for the front ends in other processes; remote.py is the other side."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from socket import socket
from typing import Any

import msgspec

from trimtab_server.engine.batch import Model
from trimtab_server.engine.port import AdmissionRequest, ComputeRequest, EnginePort, Pressure
from trimtab_server.engine.remote import messages
from trimtab_server.engine.remote.messages import ToEngine
from trimtab_server.engine.remote.rehearsing import SharedRehearsals
from trimtab_server.engine.remote.remote import restarting
from trimtab_server.engine.runners import frames
from trimtab_server.engine.runners.rehearsal import RehearsalResult
from trimtab_server.link import Link

# How often front ends are told the state of the queue, while anything is in flight.
PRESSURE_SECONDS = 0.01
# How much of a front end's count of requests is left at the next of these times: they forget within seconds.
REMEMBERED = 0.99


@dataclass(eq=False, slots=True)
class _SharedModel:
    """A model that is loaded, or being loaded, and how many uses front ends make of it."""

    key: bytes
    model: Model
    number: "asyncio.Task[int]"
    uses: int = 0


@dataclass(eq=False, slots=True)
class _FrontEnd:
    """One connected front end, and what it holds."""

    link: Link[ToEngine]
    models: Counter[_SharedModel] = field(default_factory=Counter)
    admitted: dict[int, int] = field(default_factory=dict)  # its numbers, and the engine's
    calls: dict[int, "asyncio.Task[None]"] = field(default_factory=dict)
    requests: float = 0.0  # lately


class EngineHost:
    """Does with an engine what connected front ends ask. For one event loop.

    A model that several front ends load is loaded once, and unloaded when none uses it any more. What a front
    end holds is released when it is gone. `forget` is called with an encoder version of which no model is
    left.
    """

    def __init__(
        self,
        engine: EnginePort,
        rehearsals: SharedRehearsals | None,
        forget: Callable[[str, int], None] = lambda encoder, version: None,
    ) -> None:
        self._engine = engine
        self._rehearsals = rehearsals
        self._forget_version = forget
        self._front_ends: set[_FrontEnd] = set()
        self._shared: dict[bytes, _SharedModel] = {}  # those that a load may join
        self._by_number: dict[int, _SharedModel] = {}  # those that are loaded
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
        self._front_ends.add(front)
        link.send(messages.Serving(self._up))
        link.send(messages.Pressed(self._told))
        await link.open(sock)

    async def close(self) -> None:
        """Let go of all front ends, and of what they hold."""
        await asyncio.gather(*(front.link.close() for front in self._front_ends))
        await asyncio.gather(*self._tasks)

    def serving(self, up: bool) -> None:
        """Tell all front ends whether any device is in service."""
        self._up = up
        self._tell(messages.Serving(up))

    def retired(self, model: int, why: str) -> None:
        """Tell all front ends that a model is no longer run. Who loads it from now on gets another one."""
        shared = self._by_number.get(model)
        if shared is not None and self._shared.get(shared.key) is shared:
            del self._shared[shared.key]
        self._tell(messages.Retired(model, why))

    def _tell(self, message: Any) -> None:
        for front in self._front_ends:
            front.link.send(message)

    def _received(self, front: _FrontEnd, message: ToEngine) -> None:
        if isinstance(message, messages.Compute):
            front.requests += 1
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
            self._start(front, message.call, self._rehearse(message))

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
        if message.admitted and not admitted:  # by the engine before this one
            raise restarting()
        work = ComputeRequest(admitted, message.model, message.turn, message.payloads, message.wanted)
        return messages.Answer(message.call, await self._engine.compute(work))

    async def _admit(self, front: _FrontEnd, message: messages.Admit) -> messages.Done:
        asked = AdmissionRequest(message.model, message.turn, message.tokens, message.held)
        front.admitted[message.admitted] = await self._engine.admit(asked)
        return messages.Done(message.call)

    async def _load(self, front: _FrontEnd, message: messages.Load) -> messages.Done:
        shared = self._shared.get(message.model)
        if shared is None:
            model = frames.decode(message.model, Model)
            loading = asyncio.ensure_future(self._engine.load(model))
            shared = self._shared[message.model] = _SharedModel(message.model, model, loading)
        shared.uses += 1
        front.models[shared] += 1
        try:
            number = await asyncio.shield(shared.number)
        except BaseException:
            if front in self._front_ends:  # otherwise it was let go of when it left
                self._let_go(front, shared)
            raise
        self._by_number[number] = shared
        return messages.Done(message.call, number)

    async def _unload(self, front: _FrontEnd, message: messages.Unload) -> messages.Done:
        shared = self._by_number.get(message.model)
        if shared is not None and front.models[shared]:
            done = self._let_go(front, shared)
            if done is not None:
                await asyncio.shield(done)
        return messages.Done(message.call)

    async def _rehearse(self, message: messages.Rehearse) -> messages.Rehearsed:
        if self._rehearsals is None:  # its graphs are not foreign
            return messages.Rehearsed(message.call, frames.encode(RehearsalResult()))
        return messages.Rehearsed(message.call, await self._rehearsals.rehearse(message.piece))

    def _let_go(self, front: _FrontEnd, shared: _SharedModel) -> "asyncio.Task[None] | None":
        """A front end makes one use less of a model. If it was the last of all, the task that unloads it."""
        front.models[shared] -= 1
        shared.uses -= 1
        if shared.uses:
            return None
        if self._shared.get(shared.key) is shared:
            del self._shared[shared.key]
        task = asyncio.ensure_future(self._forget(shared))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _forget(self, shared: _SharedModel) -> None:
        try:
            number = await shared.number
        except Exception:  # it was never loaded; who asked for it was told why
            return
        self._by_number.pop(number, None)
        await self._engine.unload(number)
        version = shared.model.encoder, shared.model.version
        if all((each.model.encoder, each.model.version) != version for each in self._by_number.values()):
            self._forget_version(*version)

    def _gone(self, front: _FrontEnd) -> None:
        self._front_ends.discard(front)
        for task in list(front.calls.values()):
            task.cancel()
        for admitted in front.admitted.values():
            self._engine.release(admitted, answered=False)
        front.admitted.clear()
        for shared in list(front.models.elements()):
            self._let_go(front, shared)

    def _press(self) -> None:
        """Tell front ends the state of the queue, as long as it changes; not those that do not read."""
        self._timer = None
        pressure = self._engine.pressure()
        if pressure != self._told:
            self._told = pressure
            total = sum(front.requests for front in self._front_ends) or 1.0
            for front in self._front_ends:
                if not front.link.waiting_bytes:
                    share = front.requests / total
                    front.link.send(messages.Pressed(msgspec.structs.replace(pressure, share=share)))
        for front in self._front_ends:
            front.requests *= REMEMBERED
        if any(front.calls for front in self._front_ends):
            self._timer = asyncio.get_running_loop().call_later(PRESSURE_SECONDS, self._press)
