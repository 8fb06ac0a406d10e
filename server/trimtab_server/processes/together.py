"""What all front ends do together, one thing at a time: load and unload."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TypeAlias

import msgspec

from trimtab.errors import FailedPrecondition, NotFound
from trimtab_server.processes.child import Child
from trimtab_server.processes.control import ProcessGone

log = logging.getLogger(__name__)

# Name, version and space of the encoders that a front end serves.
Served: TypeAlias = list[tuple[str, int, str]]


class Loaded(msgspec.Struct, frozen=True):
    """What a front end serves after a load, and what it could not load, and why."""

    served: Served
    problems: dict[str, str] = {}


class Together:
    """Loads and unloads in all front ends, and sees to it that they serve the same.

    A front end that dies meanwhile does not count: the one that replaces it begins with what is on disk, but
    for what clients have unloaded.
    """

    def __init__(self, front_ends: Mapping[int, Child]) -> None:
        self._front_ends = front_ends
        self._served: dict[Child, Served] = {}
        self._unloaded: set[str] = set()  # by clients
        self._lock = asyncio.Lock()

    @property
    def unloaded(self) -> frozenset[str]:
        """Encoders that clients have unloaded."""
        return frozenset(self._unloaded)

    @property
    def served(self) -> Served:
        """What is served."""
        return next(iter(self._served.values()), [])

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """While nothing is loaded or unloaded."""
        async with self._lock:
            yield

    def joined(self, front_end: Child, served: Served) -> None:
        """A front end serves from now on."""
        self._served = {each: known for each, known in self._served.items() if each.runs}
        self._served[front_end] = served

    async def agree(self) -> None:
        """Load what front ends differ in: the disk may have changed since the others looked. To be called
        within `alone`."""
        known = list(self._served.values())
        differing = {each[0] for served in known for each in set(served).symmetric_difference(known[0])}
        for encoder in sorted(differing):
            log.warning("front ends serve different versions of %s: all load it again", encoder)
            with contextlib.suppress(FailedPrecondition, NotFound):
                await self._load(encoder)

    async def load(self, encoder: str) -> None:
        """Load an encoder in all front ends.

        Raises what one of them raises; FailedPrecondition if they do not serve the same after that.
        """
        async with self._lock:
            await self._load(encoder)

    async def load_for(self, value: bytes) -> None:
        """The same for a front end's caller."""
        await self.load(msgspec.msgpack.decode(value, type=str))

    async def unload_for(self, value: bytes) -> None:
        """Unload an encoder in all front ends, for a caller of one of them.

        Raises what one of them raises, but for NotFound if others had it.
        """
        encoder = msgspec.msgpack.decode(value, type=str)
        async with self._lock:
            outcomes = await self._ask_all("unload", encoder)
            self._learn(outcomes)
            errors = [each for each in outcomes.values() if isinstance(each, Exception)]
            if outcomes and len(errors) == len(outcomes):
                raise errors[0]
            self._unloaded.add(encoder)
            for error in errors:
                if not isinstance(error, NotFound):
                    raise error

    async def _load(self, encoder: str) -> None:
        self._unloaded.discard(encoder)
        outcomes = await self._ask_all("load", encoder)
        loaded = self._learn(outcomes)
        for outcome in outcomes.values():
            if isinstance(outcome, Exception):
                raise outcome
        first = next(iter(loaded.values()), None)
        for child, each in loaded.items():
            if first is not None and (set(each.served), each.problems) != (set(first.served), first.problems):
                raise FailedPrecondition(
                    f"{child.name} serves {_named(each)}, another front end {_named(first)}: load {encoder} "
                    "again, or restart the server"
                )

    def _learn(self, outcomes: Mapping[Child, Loaded | Exception]) -> dict[Child, Loaded]:
        """Remember what front ends serve now."""
        loaded = {child: each for child, each in outcomes.items() if isinstance(each, Loaded)}
        self._served |= {child: each.served for child, each in loaded.items()}
        return loaded

    async def _ask_all(self, what: str, encoder: str) -> dict[Child, Loaded | Exception]:
        """What each front end has answered or raised; without those that are gone."""

        async def ask(child: Child) -> Loaded | Exception:
            try:
                return await child.get(Loaded, what, encoder)
            except Exception as error:
                return error

        children = [child for child in self._front_ends.values() if child.runs]
        outcomes = await asyncio.gather(*map(ask, children))
        return {
            child: outcome
            for child, outcome in zip(children, outcomes, strict=True)
            if not isinstance(outcome, ProcessGone)
        }


def _named(loaded: Loaded) -> str:
    served = ", ".join(f"{name} {version}" for name, version, _ in loaded.served) or "nothing"
    problems = "; ".join(f"not {what}: {why}" for what, why in loaded.problems.items())
    return f"{served} ({problems})" if problems else served
