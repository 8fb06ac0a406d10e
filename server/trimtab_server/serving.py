"""A server from its start until its process is told to stop."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from trimtab_server.app import App
from trimtab_server.config import Config

# Of the garbage collector: how many objects are made until it looks at them, how many looks until it looks at
# older ones, and how many of those until it looks at everything. By default a few thousand texts have it look
# at everything, which stops every call for tens of milliseconds while many requests are open.
THRESHOLDS = (2_000, 5, 200)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def serve(config: Config, repository: Path, ready: Callable[[App], None]) -> None:
    """Run a server until one of SIGNALS, but for those that whoever started it has ignored, as nohup does
    with SIGHUP; call `ready` once it serves."""
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
            # What is loaded by now stays: looking it through at each full collection would stop every call
            # for some 30 ms.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*THRESHOLDS)
            ready(app)
            await stopping.wait()
    finally:
        await app.stop()


async def _unless(stopping: asyncio.Event, work: Awaitable[None]) -> bool:
    """Await `work`, unless the server is told to stop first; True where the work was finished."""
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
