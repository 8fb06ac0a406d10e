"""A server from its start until its process is told to stop."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from trimtab_server.app import App
from trimtab_server.config import Config

# The garbage collector's thresholds: how many new objects until it scans them, how many such scans until it
# scans older ones, and how many of those until it scans everything. By default, a few thousand texts make it
# scan everything, which stops every call for tens of milliseconds while many requests are open.
THRESHOLDS = (2_000, 5, 200)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def serve(config: Config, repository: Path, ready: Callable[[App], None]) -> None:
    """Run a server until one of SIGNALS arrives; call `ready` once it serves. Signals that the parent process
    ignores, as nohup does with SIGHUP, stay ignored."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def stop() -> None:
        stopping.set()
        for number in heeded:  # a second one ends the process at once
            loop.remove_signal_handler(number)

    for number in heeded:
        loop.add_signal_handler(number, stop)
    app = App(config, repository)
    try:
        if await _unless(stopping, app.start()):
            # What is loaded by now stays: scanning it at each full collection would stop every call for some
            # 30 ms.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*THRESHOLDS)
            ready(app)
            await stopping.wait()
    finally:
        await app.stop()


async def _unless(stopping: asyncio.Event, work: Awaitable[None]) -> bool:
    """Await `work`, unless the server is told to stop first; True if the work was finished."""
    task, stop = asyncio.ensure_future(work), asyncio.ensure_future(stopping.wait())
    await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return False
    await task
    return True
