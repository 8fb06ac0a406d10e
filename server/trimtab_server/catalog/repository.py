"""The model repository: which bundles and adapters are on disk, which of them are loaded, in what state."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import bundle as bundles
from trimtab.errors import (
    ConfigError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TrimtabError,
    Unavailable,
)
from trimtab_server import limited, memory
from trimtab_server.callers import access
from trimtab_server.catalog.encoder import Encoder
from trimtab_server.catalog.opening import Opener
from trimtab_server.engine.batch import Model
from trimtab_server.engine.runners import runtime
from trimtab_server.policies import brownout
from trimtab_server.policies.trials import Trials
from trimtab_server.spaces.adapters import Adapters, Route

log = logging.getLogger(__name__)

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]

# Of an encoder's versions that are served no more, so many of the newest are known, with the reason.
REMEMBERED = 4
# Seconds until a version that has failed while it was served is tried again: more each time.
FIRST_TRY, LAST_TRY = 30.0, 3600.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index."""

    name: str
    version: int
    state: State
    reason: str = ""
    encoder: Encoder | None = None  # while it is READY, and until it is unloaded
    retired: bool = False  # it is not to be served any more: it is gone, or newer ones took its place


class Repository:
    """Loads bundles and finds them by name and version.

    `changed` is called with each entry whose state changed; of an encoder the `newest` versions that can be
    loaded are served, or all where it is 0. Versions that are on trial, by `trials`, answer only what names
    them or is given to them. Loads and unloads are the repository's own tasks, one at a time of each encoder,
    so that what hangs holds up no other: a caller that gives up waiting leaves nothing half done. No step of
    them takes longer than `load_seconds`.
    """

    def __init__(
        self,
        path: Path,
        opener: Opener,
        mapped: Adapters,
        changed: Callable[[Entry], None],
        *,
        newest: int = 0,
        trials: Trials | None = None,
        load_seconds: float = 60.0,
    ) -> None:
        self.path = path
        self.adapters = mapped
        self._opener = opener
        self._changed = changed
        self._newest = newest
        self._trials = trials or Trials({}, {})
        self._misconfigured: dict[tuple[str, int], str] = {}
        self._stand_ins: dict[Encoder, tuple[Encoder, Route]] = {}
        self._entries: dict[tuple[str, int], Entry] = {}
        # What requests name, by name and version, until an entry changes; "" for those who may use all.
        self._meant: dict[tuple[str, str], Encoder] = {}
        self._load_seconds = load_seconds
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by encoder
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: Counter[tuple[str, int]] = Counter()  # how often a version was retired
        self._users: Counter[Encoder] = Counter()  # requests that have found it and are not answered
        self._left = asyncio.Event()  # an encoder has no users any more

    def index(self) -> list[Entry]:
        """Every version that is or was served or tried, and that the caller may use; by name and version."""
        may_use = access.current().may_use
        return [self._entries[key] for key in sorted(self._entries) if may_use(key[0])]

    def encoders(self) -> list[Encoder]:
        """Every version that is ready, and that the caller may use; by name, the newest version first."""
        entries = [entry for entry in self.index() if entry.state == "READY"]
        ready = [entry.encoder for entry in entries if entry.encoder is not None]
        return sorted(ready, key=lambda encoder: (encoder.name, -encoder.version))

    def in_flight(self) -> dict[str, int]:
        """How many requests use each encoder now, by NAME/VERSION."""
        return {f"{encoder.name}/{encoder.version}": count for encoder, count in self._users.items()}

    @contextmanager
    def use(self, name: str, version: str) -> Iterator[Encoder]:
        """Find an encoder and keep it from being unloaded for as long as a request needs it."""
        encoder = self.find(name, version)
        self._users[encoder] += 1
        try:
            yield encoder
        finally:
            self._users[encoder] -= 1
            if not self._users[encoder]:
                del self._users[encoder]
                self._left.set()

    def find(self, name: str, version: str = "") -> Encoder:
        """The encoder of this name: where `version` is empty, the newest version that is ready and not on
        trial.

        An empty name will do where one encoder alone is served. Raises NotFound, naming what is
        there; FailedPrecondition where the version is known but could not be loaded; Unavailable
        while it loads; PermissionDenied where it is not for the caller.
        """
        if version and not bundles.VERSION.fullmatch(version):
            raise InvalidArgument(f"version {version!r} is not a whole number from 1")
        if name:
            access.check_encoder(name)
        elif access.current() is not access.ANYONE:
            name = self._only()
        found = self._meant.get((name, version))
        if found is None:
            found = self._meant[name, version] = self._find(name or self._only(), version)
        return found

    def _find(self, name: str, version: str) -> Encoder:
        known = sorted(
            (entry for key, entry in self._entries.items() if key[0] == name),
            key=lambda entry: -entry.version,
        )
        if not known:
            served = ", ".join(self._served()) or "none"
            raise NotFound(f"encoder {name!r} is not served here; this server has {served}")
        asked = [entry for entry in known if version in ("", str(entry.version))]
        if not asked:
            there = ", ".join(str(entry.version) for entry in known)
            raise NotFound(f"encoder {name} has no version {version}; there is version {there}")
        if not version and (on_trial := self._trials.versions(name, self._versions(name))):
            asked = [entry for entry in asked if entry.version not in on_trial]
        for entry in asked:
            if entry.encoder is not None and entry.state == "READY":
                return entry.encoder
        newest = asked[0]
        if newest.state in ("LOADING", "UNLOADING"):
            raise Unavailable(f"encoder {name} version {newest.version} is {newest.state.lower()}: try again")
        raise FailedPrecondition(f"encoder {name} version {newest.version} is not served: {newest.reason}")

    @property
    def on_trial(self) -> bool:
        """Whether any version may be on trial."""
        return bool(self._trials)

    def canary(self, name: str, tenant: str, text: str) -> Encoder | None:
        """The version on trial to which a request of this first text is given; None: the others answer it.

        Ask only for callers who may use the encoder, and for texts within the limits.
        """
        name = name or self._only()
        version = self._trials.canary(name, self._versions(name), tenant, text)
        entry = self._entries.get((name, version)) if version else None
        return entry.encoder if entry is not None and entry.state == "READY" else None

    def shadow(self, answered: Encoder, tenant: str, text: str) -> int | None:
        """The version that is shown a text which this one has answered; None: none is."""
        if not self._trials:
            return None
        name = answered.name
        return self._trials.shadow(name, self._versions(name), answered.version, tenant, text)

    def shares(self, encoder: Encoder) -> tuple[float, float]:
        """The shares that a version has as a canary, and as a shadow."""
        return self._trials.shares(encoder.name, encoder.version, self._versions(encoder.name))

    def _versions(self, name: str) -> list[int]:
        """The versions of an encoder that are served; until there is one, those that are about to be.

        One that loads beside them takes nobody's trial over before it is there: it may never be.
        """
        entries = [entry for key, entry in self._entries.items() if key[0] == name]
        ready, loading = (
            [entry.version for entry in entries if entry.state == state] for state in ("READY", "LOADING")
        )
        return ready or loading

    def stand_in(self, encoder: Encoder) -> tuple[Encoder, Route] | None:
        """The variant that stands in for an encoder in a brownout, and its way into the encoder's space."""
        return self._stand_ins.get(encoder)

    def _served(self) -> list[str]:
        """The names of the encoders that the caller may use, and that are served or on their way."""
        return sorted({entry.name for entry in self.index() if entry.state != "UNAVAILABLE"})

    def _only(self) -> str:
        """The name that is meant where a request names none; "" where there is no encoder at all."""
        names = self._served()
        if len(names) > 1:
            raise InvalidArgument(f"name an encoder: this server has {', '.join(names)}")
        return names[0] if names else next((entry.name for entry in self.index()), "")

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
        beside = await limited.run(self._load_seconds, f"reading {self.path}", self._with_adapters)
        wanted = sorted({name for name, _ in found} | beside)
        outcomes = await asyncio.gather(*map(self.load, wanted), return_exceptions=True)
        for name, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, TrimtabError):
                log.error("%s: %s", self.path / name, outcome)
            elif outcome is not None:
                raise outcome
        if self._misconfigured:
            raise ConfigError("\n".join(self._misconfigured.values()))
        for table, names in {"encoders": set(self._opener.settings), **self._trials.configured}.items():
            for name in sorted(names - {name for name, _ in found}):
                log.warning("[%s.%s] is configured, and the repository has no such encoder", table, name)

    async def load(self, name: str) -> None:
        """Bring an encoder in step with the disk: load new versions and adapters, unload those that are gone.

        Raises NotFound where the repository has no such encoder, and FailedPrecondition where a version that
        is loaded was changed on disk: it goes on as it is. A version or an adapter that cannot be loaded does
        not keep the others from it; its entry says why.
        """
        access.check_admin()
        access.check_encoder(name)
        await self._finish(self._synchronise(name))

    def problems(self, name: str) -> dict[str, str]:
        """What on disk belongs to an encoder and could not be loaded, and why."""
        of_name = [entry for key, entry in self._entries.items() if key[0] == name and not entry.retired]
        versions = {f"version {each.version}": each.reason for each in of_name if each.state == "UNAVAILABLE"}
        found = self.adapters.problems(name)
        return versions | {f"adapter {adapter}": found[adapter] for adapter in sorted(found)}

    async def unload(self, name: str) -> None:
        """Stop serving every version of an encoder, after what they have accepted is answered."""
        access.check_admin()
        access.check_encoder(name)
        await self._finish(self._unload_all(name))

    def retire(self, model: Model, why: str) -> None:
        """Serve a model no more that fails while others run well, and try it again after a while."""
        task = asyncio.create_task(self._give_up(model, why), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Give up the loads and unloads that are under way: the process ends."""
        for task in self._tasks:
            task.cancel()

    async def _look(self) -> tuple[dict[tuple[str, int], Path], dict[str, str]]:
        """The versions on disk, by name and version, of each name the oldest first; and which folders of
        encoders cannot be read, and why.
        """
        return await limited.run(self._load_seconds, f"reading {self.path}", self._found)

    def _with_adapters(self) -> set[str]:
        return set(adapters.encoders(self.path))

    def _found(self) -> tuple[dict[tuple[str, int], Path], dict[str, str]]:
        unreadable: dict[str, str] = {}
        versions = bundles.versions(self.path, unreadable)
        return {(name, version): path for name, version, path in versions}, unreadable

    def _wanted(self, found: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Of the versions on disk those that are to be served, where they can be loaded."""
        versions: dict[str, list[tuple[str, int]]] = {}
        for key in found:
            versions.setdefault(key[0], []).append(key)
        return [key for keys in versions.values() for key in keys[-self._newest :]]  # -0 is the first

    async def _finish(self, work: Coroutine[None, None, None]) -> None:
        """Run this as a task of the repository's, and wait for it; a caller that leaves does not stop it."""
        # In a context of its own: what it announces is not for this caller alone.
        task = asyncio.create_task(work, context=Context())
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
                await self._unload(self._entries[key], _why_gone(self.path, *key), retired=True)
            self._publish()
        if changed:
            raise FailedPrecondition("; ".join(changed))

    async def _take_up(self, key: tuple[str, int], path: Path) -> list[str]:
        """Load a version that is not loaded yet. What is wrong with the files of one that is, if anything."""
        entry = self._entries.get(key)
        if entry is None or entry.encoder is None:
            await self._load(Entry(*key, "LOADING"), path)
        elif wrong := await self._changed_on_disk(entry, entry.encoder, path):
            return [wrong]
        elif not entry.encoder.states_width and self.adapters.wants_states(entry.encoder.manifest):
            await self._change_model(self._entries[key], entry.encoder, path)
        return []

    async def _changed_on_disk(self, entry: Entry, encoder: Encoder, path: Path) -> str:
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
        elif not await limited.run(self._load_seconds, f"reading {folder}", partial(_is_empty, folder)):
            return
        raise FailedPrecondition(
            f"there is nothing any more in {folder}, as where a volume is not mounted: what is served stays. "
            f"Unload {name} where that is meant"
        )

    async def _unload_all(self, name: str) -> None:
        async with self._one_at_a_time(name):
            entries = [entry for key, entry in self._entries.items() if key[0] == name]
            if not entries:
                raise NotFound(f"encoder {name!r} is not served here")
            for entry in entries:
                await self._unload(entry, "it was unloaded")
            self._publish()

    async def _give_up(self, model: Model, why: str) -> None:
        loaded = {key: each.encoder for key, each in self._entries.items() if each.encoder}
        for key in [key for key, encoder in loaded.items() if model in _models(encoder)]:
            async with self._one_at_a_time(key[0]):
                entry, encoder = self._entries[key], self._entries[key].encoder
                if encoder is None or model not in _models(encoder):
                    continue
                self._failed[key] += 1
                if model is encoder.model:
                    await self._unload(entry, why)
                else:
                    kept = {name: each for name, each in encoder.variants.items() if each.model is not model}
                    self._put(replace(entry, encoder=replace(encoder, variants=kept)))
                    await self._retire(encoder, (model,))
                self._publish()
            await self._try_again(key, why)

    async def _try_again(self, key: tuple[str, int], why: str) -> None:
        """Load a version that was given up, as often as it takes, unless it is unloaded or gone meanwhile."""
        while True:
            await asyncio.sleep(min(LAST_TRY, FIRST_TRY * 2 ** (self._failed[key] - 1)))
            entry = self._entries.get(key)
            if entry is None or entry.state != "UNAVAILABLE" or entry.reason != why:
                return
            try:
                await self._synchronise(key[0])
            except TrimtabError as error:
                log.warning("%s version %d is not loaded again: %s", *key, error)
            self._failed[key] += 1
            why = self._entries[key].reason if key in self._entries else why

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

    async def _change_model(self, entry: Entry, before: Encoder, path: Path) -> None:
        """Let the graph with or without inner states take over, whichever is wanted now; no request fails."""
        try:
            encoder = await self._opener.change_states(before, path)
        except Exception as error:  # the version goes on as it is; its adapters say that they cannot be used
            log.error("%s: the graph cannot be changed: %r", path, error)
            return
        self._put(replace(entry, encoder=encoder))
        await self._retire(before, (before.model,))

    async def _unload(self, entry: Entry, reason: str, *, retired: bool = False) -> None:
        # Nobody finds it from here on, so those who use it only grow fewer.
        self._put(replace(entry, state="UNLOADING"))
        if entry.encoder is not None:
            await self._retire(entry.encoder, [graph.model for graph in entry.encoder.graphs()])
        self._put(replace(entry, state="UNAVAILABLE", encoder=None, reason=reason, retired=retired))
        if retired:
            of_name = [key for key, each in self._entries.items() if each.name == entry.name and each.retired]
            for key in sorted(of_name)[:-REMEMBERED]:
                del self._entries[key]

    async def _retire(self, encoder: Encoder, models: Sequence[Model]) -> None:
        while encoder in self._users:
            self._left.clear()
            await self._left.wait()
        await self._opener.close(models)
        await asyncio.to_thread(memory.give_back)

    def _publish(self) -> None:
        encoders = self.encoders()
        self.adapters.publish(
            (graph.manifest, graph.states_width) for encoder in encoders for graph in encoder.graphs()
        )
        self._stand_ins = {}
        for encoder in encoders:
            if encoder.brownout is None:
                continue
            settings = encoder.brownout.settings
            try:
                route = brownout.way(settings, encoder.manifest, self.adapters.usable(encoder.name))
            except ConfigError as error:  # it has lost its adapter
                log.warning("%s version %d has no brownout: %s", encoder.name, encoder.version, error)
            else:
                self._stand_ins[encoder] = encoder.variants[settings.variant], route

    def _put(self, entry: Entry) -> None:
        self._entries[entry.name, entry.version] = entry
        self._meant.clear()
        self._changed(entry)


def _is_empty(folder: Path) -> bool:
    """Whether there is such a folder with nothing in it."""
    return folder.is_dir() and not any(folder.iterdir())


def _models(encoder: Encoder) -> list[Model]:
    return [graph.model for graph in encoder.graphs()]


def _why_gone(repository: Path, name: str, version: int) -> str:
    if (repository / name / str(version)).is_dir():
        return "there are newer versions, and this server keeps as many as versions.newest says"
    return "it is gone from the repository"
