"""Work on a thread of its own, which is given up when it takes too long: foreign files and graphs may hang.

asyncio.to_thread will not do for it: its threads are few, and the process would wait for them at its end.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from trimtab.errors import FailedPrecondition, Unavailable
from trimtab_server import stopping

T = TypeVar("T")
# Threads that were given up and have not come back; beyond so many nothing more is begun.
MOST_GIVEN_UP = 32
# How long work may take to end after it was stopped.
STOP_SECONDS = 2.0
# Threads that wait for more work: to begin one takes longer than the run of an adapter.
MOST_IDLE = 8


class Heartbeat:
    """When work last got on. Steps of it are limited, not the whole, which may be large."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.given_up = False

    def step(self, more: float = 0.0) -> None:
        """It gets on, and may take so many seconds more than others for its next step; from any thread.

        Raises where it was given up: its result would be kept by nobody.
        """
        if self.given_up:
            raise RuntimeError("it was given up")
        self.at = time.monotonic() + more


class _Thread:
    """A thread that does one work after the other, while there is any for it."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="limited", daemon=True)
        self._thread.start()

    @property
    def ident(self) -> int | None:
        return self._thread.ident

    def do(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def _run(self) -> None:
        while True:
            self._work.get()()
            _given_up.discard(self)
            if len(_idle) >= MOST_IDLE:
                return
            _idle.append(self)


_local = threading.local()
_idle: list[_Thread] = []
_given_up: set[_Thread] = set()


async def run(
    seconds: float,
    what: str,
    work: Callable[[], T],
    heartbeat: Heartbeat | None = None,
    stop: Callable[[], None] | None = None,
) -> T:
    """What `work` returns or raises, on a thread of its own.

    FailedPrecondition, which names `what` it is, where it does not get on for so many seconds: `stop` is
    called, a run in ONNX Runtime is stopped, anything else is given up. Unavailable where too much was given
    up before.
    """
    if len(_given_up) >= MOST_GIVEN_UP:
        raise Unavailable(
            f"{what} is not begun: {len(_given_up)} others hang, and are given up. Restart the server"
        )
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    heartbeat = heartbeat or Heartbeat()
    heartbeat.step()

    def body() -> None:
        result: Any = None
        error: Exception | None = None
        _local.heartbeat = heartbeat
        try:
            result = work()
        except Exception as raised:
            error = raised
        except BaseException as raised:  # a panic of a library's, which asyncio would not take
            error = RuntimeError(f"{type(raised).__name__}: {raised}")
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_deliver, future, result, error)

    try:
        thread = _idle.pop()
    except IndexError:
        thread = _Thread()
    thread.do(body)
    try:
        while not future.done() and (left := heartbeat.at + seconds - time.monotonic()) > 0:
            await asyncio.wait([future], timeout=left)
        if future.done():
            return future.result()
        heartbeat.given_up = True
        if stop is not None:
            stop()
        stopping.stop(thread.ident)
        await asyncio.wait([future], timeout=min(seconds, STOP_SECONDS))
    except asyncio.CancelledError:
        heartbeat.given_up = True
        stopping.stop(thread.ident)
        raise
    finally:
        if future.done():
            future.exception()  # it was seen
        else:
            future.cancel()
            _given_up.add(thread)
    raise FailedPrecondition(f"{what} did not get on for {seconds:g} s, and was given up")


def step(more: float = 0.0) -> None:
    """What runs on this thread gets on: as `Heartbeat.step`."""
    heartbeat: Heartbeat | None = getattr(_local, "heartbeat", None)
    if heartbeat is not None:
        heartbeat.step(more)


def _deliver(future: "asyncio.Future[Any]", result: object, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class PatientLock:
    """One at a time, so that what is measured is not disturbed; but who takes longer than `patience` seconds
    keeps nobody waiting any more, until there are `most`."""

    def __init__(self, patience: float = 2.0, most: int = 16) -> None:
        self._patience = patience
        self._turn = asyncio.Semaphore(1)
        self._most = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for one's turn, and have it."""
        async with self._most:
            await self._turn.acquire()
            given_on = False

            def give_on() -> None:
                nonlocal given_on
                if not given_on:
                    given_on = True
                    self._turn.release()

            timer = asyncio.get_running_loop().call_later(self._patience, give_on)
            try:
                yield
            finally:
                timer.cancel()
                give_on()
