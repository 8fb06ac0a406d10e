"""The versions that are served: found by name, and kept while requests use them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trimtab.artifacts import bundle as bundles
from trimtab.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from trimtab_server.callers.access import ANYONE, Caller
from trimtab_server.catalog.encoder import LoadedEncoder

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]
Key: TypeAlias = tuple[str, int]  # name and version

# How many of an encoder's versions that are no longer served are remembered, with the reason: the newest.
REMEMBERED = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index."""

    name: str
    version: int
    state: State
    reason: str = ""
    encoder: LoadedEncoder | None = None  # while it is READY, and until it is unloaded
    retired: bool = False  # it is gone from disk, or newer versions took its place


def nobody(name: str, served: Sequence[int]) -> set[int]:
    """No version is on trial."""
    return set()


class Served:
    """Every version by name and number, in any state. For one event loop.

    `changed` is called with each entry whose state changed. `on_trial` tells which versions of an encoder
    answer only requests that name them or are given to them.
    """

    def __init__(
        self,
        changed: Callable[[Entry], None],
        on_trial: Callable[[str, Sequence[int]], set[int]] = nobody,
    ) -> None:
        self._changed = changed
        self._on_trial = on_trial
        self._entries: dict[Key, Entry] = {}
        self._users: Counter[LoadedEncoder] = Counter()  # requests that are not answered yet
        self._left = asyncio.Event()  # set when an encoder loses its last user
        # A cache of `find`, by name and version, until an entry changes.
        self._meant: dict[tuple[str, str], LoadedEncoder] = {}

    def index(self, caller: Caller) -> list[Entry]:
        """Every version that is or was served or loading, if the caller may use it; by name and version."""
        return [self._entries[key] for key in sorted(self._entries) if caller.may_use(key[0])]

    def encoders(self, caller: Caller) -> list[LoadedEncoder]:
        """Every version that is ready and that the caller may use; by name, newest first."""
        entries = [entry for entry in self.index(caller) if entry.state == "READY"]
        ready = [entry.encoder for entry in entries if entry.encoder is not None]
        return sorted(ready, key=lambda encoder: (encoder.name, -encoder.version))

    def in_flight(self) -> dict[str, int]:
        """How many requests use each encoder now, by NAME/VERSION."""
        return {f"{encoder.name}/{encoder.version}": count for encoder, count in self._users.items()}

    @contextmanager
    def use(self, caller: Caller, name: str, version: str) -> Iterator[LoadedEncoder]:
        """Find an encoder and keep it from being unloaded for as long as it is needed."""
        encoder = self.find(caller, name, version)
        self.hold(encoder)
        try:
            yield encoder
        finally:
            self.release(encoder)

    def hold(self, encoder: LoadedEncoder) -> None:
        """Keep an encoder that was just found from being unloaded, until it is released."""
        self._users[encoder] += 1

    def release(self, encoder: LoadedEncoder) -> None:
        """A request no longer needs the encoder."""
        self._users[encoder] -= 1
        if not self._users[encoder]:
            del self._users[encoder]
            self._left.set()

    def find(self, caller: Caller, name: str, version: str = "") -> LoadedEncoder:
        """The encoder of this name; if `version` is empty, its newest version that is ready and not on trial.

        The name may be empty if only one encoder is served. Raises NotFound, naming what there is;
        FailedPrecondition if the version is known but could not be loaded; Unavailable while it loads;
        PermissionDenied if the caller may not use it.
        """
        if version and not bundles.VERSION.fullmatch(version):
            raise InvalidArgument(f"version {version!r} is not a whole number from 1")
        if name:
            caller.check_encoder(name)
        elif caller is not ANYONE:
            name = self.only(caller)
        found = self._meant.get((name, version))
        if found is None:
            found = self._find(caller, name or self.only(caller), version)
            self._meant[name, version] = found
        return found

    def _find(self, caller: Caller, name: str, version: str) -> LoadedEncoder:
        known = sorted(
            (entry for key, entry in self._entries.items() if key[0] == name),
            key=lambda entry: -entry.version,
        )
        if not known:
            served = ", ".join(self._names(caller)) or "none"
            raise NotFound(f"encoder {name!r} is not served here; this server has {served}")
        asked = [entry for entry in known if version in ("", str(entry.version))]
        if not asked:
            there = ", ".join(str(entry.version) for entry in known)
            raise NotFound(f"encoder {name} has no version {version}; there is version {there}")
        if not version and (on_trial := self._on_trial(name, self.versions(name))):
            asked = [entry for entry in asked if entry.version not in on_trial]
        for entry in asked:
            if entry.encoder is not None and entry.state == "READY":
                return entry.encoder
        newest = asked[0]
        if newest.state in ("LOADING", "UNLOADING"):
            raise Unavailable(f"encoder {name} version {newest.version} is {newest.state.lower()}: try again")
        raise FailedPrecondition(f"encoder {name} version {newest.version} is not served: {newest.reason}")

    def ready(self, name: str, version: int) -> LoadedEncoder | None:
        """This version of an encoder if it is ready, for any caller."""
        entry = self._entries.get((name, version))
        return entry.encoder if entry is not None and entry.state == "READY" else None

    def versions(self, name: str) -> list[int]:
        """The versions of an encoder that are served or, if there are none, those that are loading.

        A version that is still loading takes over no trial: it may never be ready.
        """
        entries = [entry for key, entry in self._entries.items() if key[0] == name]
        ready, loading = (
            [entry.version for entry in entries if entry.state == state] for state in ("READY", "LOADING")
        )
        return ready or loading

    def only(self, caller: Caller) -> str:
        """The encoder that is meant if a request names none; "" if there is none at all."""
        names = self._names(caller)
        if len(names) > 1:
            raise InvalidArgument(f"name an encoder: this server has {', '.join(names)}")
        return names[0] if names else next((entry.name for entry in self.index(caller)), "")

    def _names(self, caller: Caller) -> list[str]:
        """The names of the encoders that the caller may use, and that are served or on their way."""
        return sorted({entry.name for entry in self.index(caller) if entry.state != "UNAVAILABLE"})

    def _of(self, name: str) -> list[Entry]:
        return [entry for key, entry in self._entries.items() if key[0] == name]

    def _put(self, entry: Entry) -> None:
        self._entries[entry.name, entry.version] = entry
        self._meant.clear()
        self._changed(entry)

    def _forget_old(self, name: str) -> None:
        """Of the versions that are no longer served, keep the newest."""
        of_name = [key for key, each in self._entries.items() if each.name == name and each.retired]
        for key in sorted(of_name)[:-REMEMBERED]:
            del self._entries[key]

    async def _until_unused(self, encoder: LoadedEncoder) -> None:
        """Wait for the requests that use an encoder. It must no longer be findable."""
        while encoder in self._users:
            self._left.clear()
            await self._left.wait()
