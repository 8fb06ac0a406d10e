"""The model repository: loads and unloads that bring what is served in step with the bundles and adapters on
disk."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias
from weakref import WeakValueDictionary

from trimtab.artifacts import bundle as bundles
from trimtab.errors import ConfigError, FailedPrecondition, NotFound, TrimtabError
from trimtab_server import limited, memory
from trimtab_server.callers.access import SERVER, Caller
from trimtab_server.catalog import folders
from trimtab_server.catalog.encoder import LoadedEncoder
from trimtab_server.catalog.lifecycle import Lifecycle
from trimtab_server.catalog.opening import Opener
from trimtab_server.catalog.retrying import Retries
from trimtab_server.catalog.served import Entry, Key, Served, nobody
from trimtab_server.engine.runners import runtime
from trimtab_server.spaces.adapters import Adapters

log = logging.getLogger(__name__)

UNLOADED = "it was unloaded"
# Loads or unloads the encoder of this name in every front end of the server.
Everywhere: TypeAlias = Callable[[Literal["load", "unload"], str], Awaitable[None]]


class Repository(Served):
    """Loads and unloads what is served, besides finding it.

    Of each encoder, the `newest` versions that can be loaded are served, or all if it is 0. `policies` may
    refuse versions, and are told of them; `configured` names the encoders of each table of the configuration.
    Loads and unloads are the repository's own tasks, one at a time for each encoder: one that hangs holds up
    no other encoder, and a caller that stops waiting leaves nothing half done. No step of them takes longer
    than `load_seconds`. If the server has several front ends, loads and unloads go through `everywhere`,
    which asks each front end's repository for `load_here` or `unload_here`.
    """

    def __init__(
        self,
        path: Path,
        opener: Opener,
        mapped: Adapters,
        changed: Callable[[Entry], None],
        *,
        newest: int = 0,
        on_trial: Callable[[str, Sequence[int]], set[int]] = nobody,
        policies: Sequence[Lifecycle] = (),
        configured: Mapping[str, Collection[str]] | None = None,
        load_seconds: float = 60.0,
        everywhere: Everywhere | None = None,
    ) -> None:
        super().__init__(changed, on_trial)
        self.path = path
        self.adapters = mapped
        self._opener = opener
        self._newest = newest
        self._policies = policies
        self._configured = configured or {}
        self._misconfigured: dict[Key, str] = {}
        self._load_seconds = load_seconds
        self._everywhere = everywhere
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by encoder
        self._tasks: set[asyncio.Task[None]] = set()
        self._retries = Retries(self._synchronise, self._why_unavailable)

    async def load_all(self, unloaded: Collection[str] = ()) -> None:
        """Load every bundle of the repository, but for the encoders that a client has unloaded. One that
        cannot be loaded is logged and indexed.

        Raises ConfigError if one cannot be loaded as configured.
        """
        found, unreadable = await self._look()
        for why in unreadable.values():
            log.error("%s", why)
        for key in self._wanted(found):  # so that callers are told to wait meanwhile
            gone = key[0] in unloaded
            self._put(Entry(*key, "UNAVAILABLE" if gone else "LOADING", UNLOADED if gone else ""))
        # Encoders that are gone may have left adapters, which routes may use.
        beside = await limited.run(
            self._load_seconds, f"reading {self.path}", partial(folders.with_adapters, self.path)
        )
        wanted = sorted(({name for name, _ in found} | beside) - set(unloaded))
        outcomes = await asyncio.gather(*map(self.load_here, wanted), return_exceptions=True)
        for name, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, TrimtabError):
                log.error("%s: %s", self.path / name, outcome)
            elif outcome is not None:
                raise outcome
        if self._misconfigured:
            raise ConfigError("\n".join(self._misconfigured.values()))
        for table, names in self._configured.items():
            for name in sorted(set(names) - {name for name, _ in found}):
                log.warning("[%s.%s] is configured, and the repository has no such encoder", table, name)

    async def load(self, caller: Caller, name: str) -> None:
        """Bring an encoder in step with the disk: load new versions and adapters, unload those that are gone.

        Raises NotFound if the repository has no such encoder; FailedPrecondition if a loaded version was
        changed on disk, in which case it goes on as it is; PermissionDenied if the caller may not load. A
        version or adapter that cannot be loaded does not affect the others; its entry says why.
        """
        caller.check_admin()
        caller.check_encoder(name)
        if self._everywhere is None:
            await self.load_here(name)
        else:
            await self._everywhere("load", name)

    async def load_here(self, name: str) -> None:
        """The same in this front end."""
        await self._finish(self._synchronise(name))

    def problems(self, name: str) -> dict[str, str]:
        """An encoder's versions and adapters that could not be loaded, and why."""
        versions = {
            f"version {each.version}": each.reason
            for each in self._of(name)
            if each.state == "UNAVAILABLE" and not each.retired
        }
        found = self.adapters.problems(name)
        return versions | {f"adapter {adapter}": found[adapter] for adapter in sorted(found)}

    async def unload(self, caller: Caller, name: str) -> None:
        """Stop serving all versions of an encoder, once what they have accepted is answered.

        PermissionDenied if the caller may not unload.
        """
        caller.check_admin()
        caller.check_encoder(name)
        if self._everywhere is None:
            await self.unload_here(name)
        else:
            await self._everywhere("unload", name)

    async def unload_here(self, name: str) -> None:
        """The same in this front end."""
        await self._finish(self._unload_all(name))

    def retire(self, model: int, why: str) -> None:
        """Stop serving a model that fails while others run well, and try it again after a while."""
        task = asyncio.create_task(self._give_up(model, why))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Cancel loads and unloads, since the process is about to end."""
        for task in self._tasks:
            task.cancel()

    async def _look(self) -> tuple[Mapping[Key, Path], Mapping[str, str]]:
        """As folders.found."""
        return await limited.run(
            self._load_seconds, f"reading {self.path}", partial(folders.found, self.path)
        )

    def _wanted(self, found: Iterable[Key]) -> list[Key]:
        """The versions on disk that are to be served, if they can be loaded."""
        versions: dict[str, list[Key]] = {}
        for key in found:
            versions.setdefault(key[0], []).append(key)
        return [key for keys in versions.values() for key in keys[-self._newest :]]  # [-0:] is all of them

    async def _finish(self, work: Coroutine[None, None, None]) -> None:
        """Run this as the repository's own task, and wait for it; if the caller leaves, the task goes on."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    def _one_at_a_time(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _synchronise(self, name: str) -> None:
        if not bundles.NAME.fullmatch(name):
            raise NotFound(f"the repository has no encoder {name!r}: that is not a valid name")
        async with self._one_at_a_time(name):
            everything, unreadable = await self._look()
            if name in unreadable:
                raise FailedPrecondition(f"{unreadable[name]}. What is served stays")
            found = {key: path for key, path in everything.items() if key[0] == name}
            served = [key for key, entry in self._entries.items() if key[0] == name and not entry.retired]
            gone = [key for key in served if key not in found]
            if gone:
                await self._check_there(name, everything)
            mapped = await self.adapters.read(self.path, name)
            if not (found or gone or mapped or self.adapters.of(name)):
                raise NotFound(f"the repository has no encoder {name!r} with a version in it")
            self.adapters.put(name, mapped)
            kept, older, changed = self._wanted(found), list(found), list[str]()
            del older[-len(kept) :]
            for key in kept:
                changed += await self._take_up(key, found[key])
            # A broken new version leaves the previous one in service.
            while older and sum(self._entries[key].state == "READY" for key in kept) < self._newest:
                kept.append(older.pop())
                changed += await self._take_up(kept[-1], found[kept[-1]])
            # Requests see an adapter only while the graph gives the rows that it reads.
            self._publish()
            for key in kept:
                entry = self._entries[key]
                encoder = entry.encoder
                if encoder and encoder.states_width and not self.adapters.wants_states(encoder.manifest):
                    await self._change_model(entry, encoder, found[key])
            for key in served:
                if key in kept:
                    continue
                await self._unload(self._entries[key], folders.why_gone(self.path, *key), retired=True)
            self._publish()
        if changed:
            raise FailedPrecondition("; ".join(changed))

    async def _take_up(self, key: Key, path: Path) -> list[str]:
        """Load a version that is not loaded yet. Returns what is wrong with a loaded one's files, if
        anything."""
        entry = self._entries.get(key)
        if entry is None or entry.encoder is None:
            await self._load(Entry(*key, "LOADING"), path)
        elif wrong := await self._changed_on_disk(entry, entry.encoder, path):
            return [wrong]
        elif not entry.encoder.states_width and self.adapters.wants_states(entry.encoder.manifest):
            await self._change_model(self._entries[key], entry.encoder, path)
        return []

    async def _changed_on_disk(self, entry: Entry, encoder: LoadedEncoder, path: Path) -> str:
        """What has happened to a loaded version's files, which is also logged; "" if they are unchanged."""
        try:
            await self._opener.compare(encoder, path)
            wrong = ""
        except TrimtabError as error:
            wrong = str(error)
            log.error("%s", wrong)
        if entry.reason != wrong:
            self._put(replace(entry, reason=wrong))
        return wrong

    async def _check_there(self, name: str, everything: Collection[object]) -> None:
        """FailedPrecondition if a folder is empty: its encoders were hardly removed on purpose."""
        folder = self.path / name
        if not everything:
            folder = self.path
        elif not await limited.run(
            self._load_seconds, f"reading {folder}", partial(folders.is_empty, folder)
        ):
            return
        raise FailedPrecondition(
            f"{folder} is empty now, as if a volume were not mounted: what is served stays. Unload {name} "
            "if that is intended"
        )

    async def _unload_all(self, name: str) -> None:
        async with self._one_at_a_time(name):
            entries = self._of(name)
            if not entries:
                raise NotFound(f"encoder {name!r} is not served here")
            for entry in entries:
                await self._unload(entry, UNLOADED)
            self._publish()

    async def _give_up(self, model: int, why: str) -> None:
        loaded = {key: each.encoder for key, each in self._entries.items() if each.encoder}
        for key in [key for key, encoder in loaded.items() if model in _numbers(encoder)]:
            async with self._one_at_a_time(key[0]):
                entry, encoder = self._entries[key], self._entries[key].encoder
                if encoder is None or model not in _numbers(encoder):
                    continue
                self._retries.failed(key)
                if model == encoder.number:
                    await self._unload(entry, why)
                else:
                    kept = {name: each for name, each in encoder.variants.items() if each.number != model}
                    self._put(replace(entry, encoder=replace(encoder, variants=kept)))
                    await self._retire(encoder, (model,))
                self._publish()
            await self._retries.try_again(key, why)

    def _why_unavailable(self, key: Key) -> str | None:
        entry = self._entries.get(key)
        return entry.reason if entry is not None and entry.state == "UNAVAILABLE" else None

    async def _load(self, entry: Entry, path: Path) -> None:
        self._put(entry)
        try:
            encoder = await self._opener.open(entry.name, entry.version, path)
        except TrimtabError as error:
            reason = runtime.told(error)
            log.error("%s: %s", path, reason)
            if isinstance(error, ConfigError):
                self._misconfigured[entry.name, entry.version] = f"{entry.name}/{entry.version}: {error}"
            self._put(replace(entry, state="UNAVAILABLE", reason=reason))
        except Exception as error:
            log.exception("%s cannot be loaded", path)
            self._put(replace(entry, state="UNAVAILABLE", reason=runtime.told(error)))
        else:
            self._put(replace(entry, state="READY", encoder=encoder))

    async def _change_model(self, entry: Entry, before: LoadedEncoder, path: Path) -> None:
        """Switch to the graph with or without inner states, whichever is wanted now; no request fails."""
        try:
            encoder = await self._opener.change_states(before, path)
        except Exception as error:  # the version goes on as it is, and its adapters cannot be used
            log.error("%s: the graph cannot be changed: %r", path, error)
            return
        self._put(replace(entry, encoder=encoder))
        await self._retire(before, (before.number,))

    async def _unload(self, entry: Entry, reason: str, *, retired: bool = False) -> None:
        # It can no longer be found, so its users only become fewer.
        self._put(replace(entry, state="UNLOADING"))
        if entry.encoder is not None:
            await self._retire(entry.encoder, _numbers(entry.encoder))
        for policy in self._policies:
            policy.closed(entry.name, entry.version)
        self._put(replace(entry, state="UNAVAILABLE", encoder=None, reason=reason, retired=retired))
        if retired:
            self._forget_old(entry.name)

    async def _retire(self, encoder: LoadedEncoder, models: Sequence[int]) -> None:
        await self._until_unused(encoder)
        await self._opener.close(models)
        await asyncio.to_thread(memory.give_back)

    def _publish(self) -> None:
        encoders = self.encoders(SERVER)
        self.adapters.publish(
            (graph.manifest, graph.states_width) for encoder in encoders for graph in encoder.graphs()
        )
        for policy in self._policies:
            policy.published(encoders, self.adapters.usable)


def _numbers(encoder: LoadedEncoder) -> list[int]:
    """Its models' numbers in the engine."""
    return [graph.number for graph in encoder.graphs()]
