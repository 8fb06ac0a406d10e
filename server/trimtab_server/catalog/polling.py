"""Polls the repository, and loads what has changed on disk."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

from trimtab.errors import FailedPrecondition, TrimtabError
from trimtab_server import limited

log = logging.getLogger(__name__)

# What is in an encoder's folder: paths, sizes, times of change.
Contents: TypeAlias = frozenset[tuple[str, int, int]]


class Poller:
    """Calls `load` with the name of an encoder in the repository `path` when its folder has changed, and only
    then.

    A version that could not be loaded, or that a client unloaded, is left alone until its folder changes.
    """

    def __init__(
        self,
        path: Path,
        load: Callable[[str], Awaitable[None]],
        seconds: float,
        load_seconds: float = 60.0,
    ) -> None:
        self._path = path
        self._load_encoder = load
        self._load_seconds = load_seconds
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start polling, if an interval is configured; what is there now counts as known."""
        if self._seconds:
            self._task = asyncio.create_task(self._run(contents(self._path)))

    def stop(self) -> None:
        """Stop polling."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, known: dict[str, Contents]) -> None:
        path = self._path
        while True:
            await asyncio.sleep(self._seconds)
            try:
                found = await limited.run(self._load_seconds, f"reading {path}", partial(contents, path))
            except (
                OSError,
                TrimtabError,
            ) as error:  # a volume that is away for a while takes no encoder with it
                log.warning("the repository cannot be read, and stays as it is: %s", error)
                continue
            names = [
                name for name in sorted(known.keys() | found.keys()) if known.get(name) != found.get(name)
            ]
            await asyncio.gather(*map(self._load, names))
            known = found

    async def _load(self, name: str) -> None:
        try:
            await self._load_encoder(name)
        except FailedPrecondition as error:
            log.warning("%s: %s", name, error)
        except TrimtabError as error:  # perhaps the folder is not an encoder's
            log.info("%s: %s", name, error)
        except Exception:  # nothing on disk may end the polling: nobody would notice
            log.exception("%s cannot be brought in step with the disk", name)


def contents(path: Path) -> dict[str, Contents]:
    """What is in the folder of each encoder. Raises OSError if the repository cannot be read."""
    return {
        folder.name: frozenset(
            (str(file.relative_to(folder)), status.st_size, status.st_ctime_ns)
            for file in folder.rglob("*")
            if not file.is_dir()
            for status in (file.lstat(),)
        )
        for folder in path.iterdir()
        if folder.is_dir()
    }
