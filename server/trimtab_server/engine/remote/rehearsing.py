"""Rehearsals in the engine's process: each piece once, however many front ends ask."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from trimtab_server import limited
from trimtab_server.engine.batch import Model
from trimtab_server.engine.remote.remote import RemoteEngine
from trimtab_server.engine.runners import frames
from trimtab_server.engine.runners.rehearsal import GraphPiece, Piece, RehearsalResult
from trimtab_server.engine.runners.rehearsal_pool import Rehearsals
from trimtab_server.lru import LruCache

# Between two signs of life while a front end waits for a rehearsal, whose steps the engine's process watches.
STEP_SECONDS = 1.0
# What has passed is remembered, up to so many bytes.
REMEMBERED_BYTES = 1 << 20


class RemoteRehearsals(Rehearsals):
    """Asks the engine's process, from any thread of a front end."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()

    def graph(self, model: Model) -> GraphPiece:
        return GraphPiece(model, "", 0)  # the engine knows its devices

    def rehearse(self, piece: Piece, step: Callable[[], None]) -> RehearsalResult:
        asked: Coroutine[Any, Any, bytes] = self._engine.rehearse(frames.encode(piece))
        answer = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            while True:
                step()
                try:
                    return frames.decode(answer.result(STEP_SECONDS), RehearsalResult)
                except TimeoutError:
                    if answer.done():
                        raise
        finally:
            answer.cancel()


class SharedRehearsals:
    """Answers them in the engine's process. For one event loop.

    No step of a rehearsal may take longer than `seconds`, which `rehearsals` enforce.
    """

    def __init__(self, rehearsals: Rehearsals, seconds: float) -> None:
        self._rehearsals = rehearsals
        self._seconds = seconds
        self._running: dict[bytes, asyncio.Task[bytes]] = {}
        self._passed: LruCache[bytes, bytes] = LruCache(
            REMEMBERED_BYTES, lambda key, value: len(key) + len(value)
        )

    async def rehearse(self, encoded: bytes) -> bytes:
        """Try a piece, unless it has passed before; both as frames.encode writes them. Raises as
        Rehearsals.rehearse does."""
        found = self._passed.get(encoded)
        if found is not None:
            return found
        running = self._running.get(encoded)
        if running is None:
            running = self._running[encoded] = asyncio.ensure_future(self._rehearse(encoded))
            running.add_done_callback(lambda _: self._running.pop(encoded, None))
        return await asyncio.shield(running)

    async def _rehearse(self, encoded: bytes) -> bytes:
        piece: Piece = frames.decode(encoded, Piece)  # type: ignore[arg-type]
        if isinstance(piece, GraphPiece):
            piece = self._rehearsals.graph(piece.model)
        heartbeat = limited.Heartbeat()
        work = partial(self._rehearsals.rehearse, piece, heartbeat.step)
        # The pool itself limits the steps; this is for when even its processes do not start.
        result = await limited.run(2 * self._seconds, "rehearsing", work, heartbeat)
        found = frames.encode(result)
        self._passed.put(encoded, found)
        return found
