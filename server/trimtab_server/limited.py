"""Runs work on separate threads, and gives it up when it hangs, as foreign files and graphs may make it.

asyncio.to_thread does not work for this: it has few threads, and the process would wait for them at its end.
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
# Threads that were given up and have not returned; beyond so many, no more work is started.
MOST_GIVEN_UP = 32
# How long work may take to end after it was told to stop.
STOP_SECONDS = 2.0
# Idle threads that are kept: starting one takes longer than the run of an adapter.
MOST_IDLE = 8


class Heartbeat:
    """When work last made progress: each step is limited, not the whole, which may be large."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.given_up = False

    def step(self, more: float = 0.0) -> None:
        """The work makes progress, and its next step may take `more` seconds longer than others; from any
        thread.

        Raises RuntimeError if the work was given up, since nobody would take its result.
        """
        if self.given_up:
            raise RuntimeError("it was given up")
        self.at = time.monotonic() + more


class _Thread:
    """A thread that does one piece of work after another."""

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
    """Run `work` on a thread of its own: returns or raises what it does.

    FailedPrecondition, naming `what` it is, if it makes no progress for so many seconds: then `stop` is
    called, a run in ONNX Runtime is stopped, and anything else is given up. Unavailable if too much has been
    given up.
    """
    if len(_given_up) >= MOST_GIVEN_UP:
        raise Unavailable(
            f"{what} was not started: {len(_given_up)} others hang, and were given up. Restart the server"
        )
    heartbeat = heartbeat or Heartbeat()
    heartbeat.step()
    thread, future = _begin(work, heartbeat)
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
            future.exception()  # mark it as seen
        else:
            future.cancel()
            _given_up.add(thread)
    raise FailedPrecondition(f"{what} made no progress for {seconds:g} s, and was given up")


def _begin(work: Callable[[], T], heartbeat: Heartbeat) -> "tuple[_Thread, asyncio.Future[T]]":
    """Give work to an idle thread or to a new one; the future gets what it returns or raises."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        result: Any = None
        error: Exception | None = None
        _local.heartbeat = heartbeat
        try:
            result = work()
        except Exception as raised:
            error = raised
        except BaseException as raised:  # a library's panic, which asyncio would not accept
            error = RuntimeError(f"{type(raised).__name__}: {raised}")
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_deliver, future, result, error)

    try:
        thread = _idle.pop()
    except IndexError:
        thread = _Thread()
    thread.do(body)
    return thread, future


def step(more: float = 0.0) -> None:
    """The work on this thread makes progress: as `Heartbeat.step`."""
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
    """A lock, so that measurements are not disturbed; but a holder that takes longer than `patience` seconds
    no longer keeps others waiting, until there are `most` holders."""

    def __init__(self, patience: float = 2.0, most: int = 16) -> None:
        self._patience = patience
        self._turn = asyncio.Semaphore(1)
        self._most = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the lock."""
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
