"""The engine's port for a front end whose engine is another process; host.py is the other side."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import socket
from typing import Any

import msgspec

from trimtab.errors import NotFound, ResourceExhausted, TrimtabError, Unavailable
from trimtab_server.engine.batch import Model
from trimtab_server.engine.port import AdmissionRequest, Computed, ComputeRequest, EnginePort, Pressure
from trimtab_server.engine.remote import messages
from trimtab_server.engine.remote.messages import ToFrontEnd
from trimtab_server.engine.runners import frames
from trimtab_server.link import Link

# A request of at most so many tokens is admitted together with its computing, which saves a round trip: what
# a refusal then costs is to tokenise a short text. After a refusal, its tenant's requests ask first for a
# while, and so do all when many are on their way.
SHORT_TOKENS = 512
ASK_FIRST_SECONDS = 1.0
MOST_UNASKED = 256
# Tenants that are remembered for that.
MOST_REFUSED = 4096
# Callers are told to come back after so long while the engine's process starts anew.
RESTART_SECONDS = 2.0
# What the engine has not read yet; with more, requests are refused: it has no time for them.
MOST_WAITING_BYTES = 64 << 20


@dataclass(slots=True)
class _Loaded:
    """A model that this front end uses, and its number in the engine that runs now."""

    model: Model
    there: int | None


class RemoteEngine(EnginePort):
    """Knows models and admitted requests by its own numbers, which outlive the engine's process. For one
    event loop. `lost` is called when the engine, or the connection to it, is gone.
    """

    def __init__(self, lost: Callable[[], None] = lambda: None) -> None:
        self._lost = lost
        self._tell_serving: Callable[[bool], None] = lambda up: None
        self._tell_retired: Callable[[int, str], None] = lambda model, why: None
        self._numbers = itertools.count(1)
        self._models: dict[int, _Loaded] = {}
        self._link: Link[ToFrontEnd] | None = None
        self._connected = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[Any]] = {}  # for the answers to calls
        self._unasked: dict[int, AdmissionRequest] = {}  # requests whose admission travels with their work
        self._refused: dict[str, float] = {}  # tenants, and until when they ask first
        self._pressure = Pressure()
        self._up = False  # whether the engine has a device in service
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, serving: Callable[[bool], None], retired: Callable[[int, str], None]) -> None:
        """Set what is called on the event loop: `serving` when the engine is gone or has no device in
        service, and when it is back; `retired` with the number of a model that is no longer run, and why."""
        self._tell_serving = serving
        self._tell_retired = retired

    @property
    def serving(self) -> bool:
        """Whether a device is in service, with all models loaded."""
        return self._up and all(each.there is not None for each in self._models.values())

    async def connect(self, sock: socket) -> None:
        """Use the engine behind this socket from now on, and load into it what is in use."""
        self._disconnected(self._link)
        link: Link[ToFrontEnd] = Link(
            messages.encode,
            messages.decode_to_front_end,
            self._received,
            lambda: self._disconnected(link),
        )
        self._link = link
        await link.open(sock)
        self._connected.set()
        await self._reload()

    async def connected(self) -> None:
        """Wait for an engine."""
        await self._connected.wait()

    async def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            await self._link.close()

    async def load(self, model: Model) -> int:
        while True:
            await self._connected.wait()
            link = self._link
            try:
                there = await self._load(model)
            except Unavailable:
                if self._link is link:
                    raise
                continue  # that engine has ended: the next one may load it
            number = next(self._numbers)
            self._models[number] = _Loaded(model, there)
            return number

    async def unload(self, model: int) -> None:
        loaded = self._models.pop(model)
        self._tell()
        if loaded.there is not None and self._link is not None:
            await self._ask(messages.Unload(next(self._numbers), loaded.there))

    async def admit(self, request: AdmissionRequest) -> int:
        number, turn, there = next(self._numbers), request.turn, self._there(request.model)
        if self._link is not None and self._link.waiting_bytes > MOST_WAITING_BYTES:
            raise Unavailable(
                f"the engine does not answer: try again in {RESTART_SECONDS:g} s", RESTART_SECONDS
            )
        if request.tokens + request.held <= SHORT_TOKENS and self._may_come(turn.tenant):
            self._unasked[number] = request
            return number
        call = next(self._numbers)
        try:
            await self._ask(messages.Admit(call, number, there, turn, request.tokens, request.held))
        except asyncio.CancelledError:
            self.release(number, answered=False)
            raise
        return number

    async def compute(self, request: ComputeRequest) -> Computed:
        admission = self._unasked.pop(request.admitted, None)
        tokens, held = (-1, 0) if admission is None else (admission.tokens, admission.held)
        message = messages.Compute(
            next(self._numbers), request.admitted, self._there(request.model), request.turn,
            list(request.payloads), request.wanted, tokens, held,
        )  # fmt: skip
        try:
            computed: Computed = await self._ask(message)
        except ResourceExhausted:
            self._ask_first(request.turn.tenant)
            raise
        return computed

    def release(self, admitted: int, *, answered: bool) -> None:
        if self._unasked.pop(admitted, None) is None and self._link is not None:
            self._link.send(messages.Release(admitted, answered))

    def pressure(self) -> Pressure:
        return self._pressure

    async def rehearse(self, piece: bytes) -> bytes:
        """Try a piece in the engine's rehearsals; both as frames.encode writes them."""
        found: bytes = await self._ask(messages.Rehearse(next(self._numbers), piece))
        return found

    async def _load(self, model: Model) -> int:
        """The model's number in the engine of now."""
        link = self._link
        there: int = await self._ask(messages.Load(next(self._numbers), frames.encode(model)))
        if self._link is not link:  # the engine has ended since it answered
            raise restarting()
        return there

    async def _reload(self) -> None:
        """Load the models that the engine does not have yet. One that cannot be loaded is retired."""
        async with self._reloading:
            # If the engine ends, or has no device yet, this is called again.
            with contextlib.suppress(Unavailable):
                for number, loaded in list(self._models.items()):
                    if loaded.there is None and number in self._models:
                        await self._reload_one(number, loaded)
            self._tell()

    async def _reload_one(self, number: int, loaded: _Loaded) -> None:
        try:
            there = await self._load(loaded.model)
        except Unavailable:
            raise
        except TrimtabError as error:
            self._tell_retired(number, f"it cannot be loaded into the engine's new process: {error}")
            return
        if number in self._models:
            loaded.there = there
        else:  # it was unloaded meanwhile
            await self._ask(messages.Unload(next(self._numbers), there))

    async def _ask(self, message: Any) -> Any:
        """Send a message, and wait for its answer."""
        if self._link is None:
            raise restarting()
        future = self._waiting[message.call] = asyncio.get_running_loop().create_future()
        self._link.send(message)
        try:
            return await future
        except asyncio.CancelledError:
            if self._link is not None:
                self._link.send(messages.Cancel(message.call))
            raise
        finally:
            self._waiting.pop(message.call, None)

    def _received(self, message: ToFrontEnd) -> None:
        if isinstance(message, messages.Answer):
            self._answered(message.call, message.computed)
        elif isinstance(message, messages.Done):
            self._answered(message.call, message.number)
        elif isinstance(message, messages.Failed):
            self._failed(message)
        elif isinstance(message, messages.Pressed):
            pressure = message.pressure
            here = {each.there: number for number, each in self._models.items()}
            paces = {here[there]: pace for there, pace in pressure.paces.items() if there in here}
            self._pressure = msgspec.structs.replace(pressure, paces=paces)
        elif isinstance(message, messages.Rehearsed):
            self._answered(message.call, message.found)
        elif isinstance(message, messages.Serving):
            self._up = message.up
            self._tell()
            if message.up and not self.serving:
                task = asyncio.ensure_future(self._reload())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        else:
            for number in [number for number, each in self._models.items() if each.there == message.model]:
                self._tell_retired(number, message.why)

    def _answered(self, call: int, answer: Any) -> None:
        future = self._waiting.get(call)
        if future is not None and not future.done():
            future.set_result(answer)

    def _failed(self, message: messages.Failed) -> None:
        future = self._waiting.get(message.call)
        if future is not None and not future.done():
            future.set_exception(messages.raised(message))

    def _disconnected(self, link: Link[ToFrontEnd] | None) -> None:
        """The engine behind this link is gone."""
        if link is None or self._link is not link:
            return
        self._link, self._up, self._pressure = None, False, Pressure()
        self._connected.clear()
        for loaded in self._models.values():
            loaded.there = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(restarting())
        self._tell()
        self._lost()

    def _tell(self) -> None:
        self._tell_serving(self.serving)

    def _there(self, number: int) -> int:
        loaded = self._models.get(number)
        if loaded is None:
            raise NotFound("the encoder was unloaded while the request was on its way; try again")
        if loaded.there is None:
            raise restarting()
        return loaded.there

    def _may_come(self, tenant: str) -> bool:
        """Whether a short request may be computed without asking first."""
        if len(self._unasked) >= MOST_UNASKED:
            return False
        until = self._refused.get(tenant)
        if until is None:
            return True
        if time.monotonic() < until:
            return False
        del self._refused[tenant]
        return True

    def _ask_first(self, tenant: str) -> None:
        """The requests of this tenant ask first for a while."""
        now = time.monotonic()
        if len(self._refused) >= MOST_REFUSED:
            self._refused = {each: until for each, until in self._refused.items() if until > now}
        if len(self._refused) < MOST_REFUSED:
            self._refused[tenant] = now + ASK_FIRST_SECONDS


def restarting() -> Unavailable:
    """What callers are told while there is no engine."""
    return Unavailable(
        f"the engine's process is starting anew: try again in {RESTART_SECONDS:g} s", RESTART_SECONDS
    )
