"""The model repository: bundles and adapters on disk, and the loads and unloads that bring what is served in
step with it."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
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


class Repository(Served):
    """Loads and unloads what is served, besides finding it.

    Of an encoder the `newest` versions that can be loaded are served, or all where it is 0. `policies` are
    asked about them, and told of them; `configured` names the encoders of each table of the configuration.
    Loads and unloads are the repository's own tasks, one at a time of each encoder, so that what hangs holds
    up no other: a caller that gives up waiting leaves nothing half done. No step of them takes longer than
    `load_seconds`.
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
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by encoder
        self._tasks: set[asyncio.Task[None]] = set()
        self._retries = Retries(self._synchronise, self._why_unavailable)

    async def load_all(self) -> None:
        """Load every bundle of the repository. One that cannot be loaded is logged and indexed.

        Raises ConfigError where one cannot be loaded as it is configured.
        """
        found, unreadable = await self._look()
        for why in unreadable.values():
            log.error("%s", why)
        for key in self._wanted(found):  # so that whoever asks meanwhile is told to wait
            self._put(Entry(*key, "LOADING"))
        # An encoder that is gone may have left adapters, and routes lead through them.
        beside = await limited.run(
            self._load_seconds, f"reading {self.path}", partial(folders.with_adapters, self.path)
        )
        wanted = sorted({name for name, _ in found} | beside)
        outcomes = await asyncio.gather(*(self.load(SERVER, name) for name in wanted), return_exceptions=True)
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

        Raises NotFound where the repository has no such encoder, and FailedPrecondition where a version that
        is loaded was changed on disk: it goes on as it is. A version or an adapter that cannot be loaded does
        not keep the others from it; its entry says why. PermissionDenied where the caller may not load.
        """
        caller.check_admin()
        caller.check_encoder(name)
        await self._finish(self._synchronise(name))

    def problems(self, name: str) -> dict[str, str]:
        """What on disk belongs to an encoder and could not be loaded, and why."""
        versions = {
            f"version {each.version}": each.reason
            for each in self._of(name)
            if each.state == "UNAVAILABLE" and not each.retired
        }
        found = self.adapters.problems(name)
        return versions | {f"adapter {adapter}": found[adapter] for adapter in sorted(found)}

    async def unload(self, caller: Caller, name: str) -> None:
        """Stop serving every version of an encoder, after what they have accepted is answered.

        PermissionDenied where the caller may not unload.
        """
        caller.check_admin()
        caller.check_encoder(name)
        await self._finish(self._unload_all(name))

    def retire(self, model: int, why: str) -> None:
        """Stop serving a model that fails while others run well, and try it again after a while."""
        task = asyncio.create_task(self._give_up(model, why))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Give up the loads and unloads that are under way: the process ends."""
        for task in self._tasks:
            task.cancel()

    async def _look(self) -> tuple[Mapping[Key, Path], Mapping[str, str]]:
        """As folders.found."""
        return await limited.run(
            self._load_seconds, f"reading {self.path}", partial(folders.found, self.path)
        )

    def _wanted(self, found: Iterable[Key]) -> list[Key]:
        """Of the versions on disk those that are to be served, where they can be loaded."""
        versions: dict[str, list[Key]] = {}
        for key in found:
            versions.setdefault(key[0], []).append(key)
        return [key for keys in versions.values() for key in keys[-self._newest :]]  # -0 is the first

    async def _finish(self, work: Coroutine[None, None, None]) -> None:
        """Run this as a task of the repository's, and wait for it; a caller that leaves does not stop it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    def _one_at_a_time(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _synchronise(self, name: str) -> None:
        if not bundles.NAME.fullmatch(name):
            raise NotFound(f"the repository has no encoder {name!r}: no folder is called so")
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
            # Whoever puts a broken version there still has the one before it.
            while older and sum(self._entries[key].state == "READY" for key in kept) < self._newest:
                kept.append(older.pop())
                changed += await self._take_up(kept[-1], found[kept[-1]])
            # Requests see an adapter once the rows are there that it reads, and no more before they go.
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
        """Load a version that is not loaded yet. What is wrong with the files of one that is, if anything."""
        entry = self._entries.get(key)
        if entry is None or entry.encoder is None:
            await self._load(Entry(*key, "LOADING"), path)
        elif wrong := await self._changed_on_disk(entry, entry.encoder, path):
            return [wrong]
        elif not entry.encoder.states_width and self.adapters.wants_states(entry.encoder.manifest):
            await self._change_model(self._entries[key], entry.encoder, path)
        return []

    async def _changed_on_disk(self, entry: Entry, encoder: LoadedEncoder, path: Path) -> str:
        """What became of a loaded version's files; "" where they are what they were. The log has it, too."""
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
        """FailedPrecondition where a folder is empty, and so none of its encoders is gone on purpose."""
        folder = self.path / name
        if not everything:
            folder = self.path
        elif not await limited.run(
            self._load_seconds, f"reading {folder}", partial(folders.is_empty, folder)
        ):
            return
        raise FailedPrecondition(
            f"there is nothing any more in {folder}, as where a volume is not mounted: what is served stays. "
            f"Unload {name} where that is meant"
        )

    async def _unload_all(self, name: str) -> None:
        async with self._one_at_a_time(name):
            entries = self._of(name)
            if not entries:
                raise NotFound(f"encoder {name!r} is not served here")
            for entry in entries:
                await self._unload(entry, "it was unloaded")
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
        """Let the graph with or without inner states take over, whichever is wanted now; no request fails."""
        try:
            encoder = await self._opener.change_states(before, path)
        except Exception as error:  # the version goes on as it is; its adapters say that they cannot be used
            log.error("%s: the graph cannot be changed: %r", path, error)
            return
        self._put(replace(entry, encoder=encoder))
        await self._retire(before, (before.number,))

    async def _unload(self, entry: Entry, reason: str, *, retired: bool = False) -> None:
        # Nobody finds it from here on, so those who use it only grow fewer.
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
    """Of its models, in the engine."""
    return [graph.number for graph in encoder.graphs()]
