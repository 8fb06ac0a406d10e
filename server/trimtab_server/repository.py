"""The model repository: which bundles are on disk, which of them are loaded, and in what state."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trimtab import bundle as bundles
from trimtab.bundle import Bundle, Manifest
from trimtab.errors import (
    BundleError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TrimtabError,
    Unavailable,
)
from trimtab_server.batch import Model
from trimtab_server.engine import Engine
from trimtab_server.tokenization import Tokenizer

log = logging.getLogger(__name__)

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]


@dataclass(frozen=True, eq=False, slots=True)
class Encoder:
    """A loaded version of an encoder."""

    manifest: Manifest
    tokenizer: Tokenizer
    model: Model

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """Its version."""
        return self.manifest.version


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index."""

    name: str
    version: int
    state: State
    reason: str = ""
    encoder: Encoder | None = None  # set while READY


class Repository:
    """Loads bundles into the engine and finds them by name and version.

    `changed` is called with each entry whose state changed.
    """

    def __init__(self, path: Path, engine: Engine, changed: Callable[[Entry], None]) -> None:
        self.path = path
        self._engine = engine
        self._changed = changed
        self._entries: dict[tuple[str, int], Entry] = {}
        self._loading = asyncio.Lock()  # one load or unload at a time

    def index(self) -> list[Entry]:
        """Every version that is or was served or tried, by name and version."""
        return [self._entries[key] for key in sorted(self._entries)]

    def encoders(self) -> list[Encoder]:
        """Every version that is ready, by name, the newest version first."""
        ready = [entry.encoder for entry in self._entries.values() if entry.encoder is not None]
        return sorted(ready, key=lambda encoder: (encoder.name, -encoder.version))

    def find(self, name: str, version: str = "") -> Encoder:
        """The encoder of this name: the newest version that is ready where `version` is empty.

        An empty name will do where one encoder alone is served. Raises NotFound, naming what is
        there; FailedPrecondition where the version is known but could not be loaded; Unavailable
        while it loads.
        """
        ready = self.encoders()
        names = sorted({encoder.name for encoder in ready})
        if not name:
            if len(names) != 1:
                raise InvalidArgument(
                    f"name an encoder: this server has {', '.join(names) or 'none ready yet'}"
                )
            name = names[0]
        if version and not bundles.VERSION.fullmatch(version):
            raise InvalidArgument(f"version {version!r} is not a whole number from 1")
        of_name = [encoder for encoder in ready if encoder.name == name]
        if not version and of_name:
            return of_name[0]
        for encoder in of_name:
            if encoder.version == int(version):
                return encoder
        known = [entry for key, entry in self._entries.items() if key[0] == name and entry.encoder is None]
        if version:
            known = [entry for entry in known if entry.version == int(version)]
        if known:
            newest = max(known, key=lambda entry: entry.version)
            if newest.state in ("LOADING", "UNLOADING"):
                raise Unavailable(
                    f"encoder {name} version {newest.version} is {newest.state.lower()}: try again"
                )
            raise FailedPrecondition(
                f"encoder {name} version {newest.version} is not served: {newest.reason}"
            )
        if of_name:
            there = ", ".join(str(encoder.version) for encoder in of_name)
            raise NotFound(f"encoder {name} has no version {version}; it is served in version {there}")
        raise NotFound(f"encoder {name!r} is not served here; this server has {', '.join(names) or 'none'}")

    async def load_all(self) -> None:
        """Load every bundle of the repository. One that cannot be loaded is logged and indexed."""
        for name in sorted({name for name, _, _ in bundles.versions(self.path)}):
            await self.load(name)

    async def load(self, name: str) -> None:
        """Bring an encoder in step with the disk: load new versions, unload those that are gone.

        Raises NotFound where the repository has no such encoder. A version that cannot be loaded
        does not keep the others from it; its entry says why.
        """
        async with self._loading:
            found = {
                (name, version): path for other, version, path in bundles.versions(self.path) if other == name
            }
            gone = [key for key, entry in self._entries.items() if key[0] == name and key not in found]
            if not found and not gone:
                raise NotFound(f"the repository has no encoder {name!r} with a version in it")
            for key, path in found.items():
                entry = self._entries.get(key)
                if entry is None or entry.encoder is None:
                    await self._load(Entry(name, key[1], "LOADING"), path)
            for key in gone:
                await self._unload(self._entries[key], "it is gone from the repository")

    async def unload(self, name: str) -> None:
        """Stop serving every version of an encoder, after what they have accepted is answered."""
        async with self._loading:
            entries = [entry for key, entry in self._entries.items() if key[0] == name]
            if not entries:
                raise NotFound(f"encoder {name!r} is not served here")
            for entry in entries:
                await self._unload(entry, "it was unloaded")

    async def _load(self, entry: Entry, path: Path) -> None:
        self._put(entry)
        try:
            encoder = await self._open(entry, path)
        except TrimtabError as error:
            log.error("%s: %s", path, error)
            self._put(replace(entry, state="UNAVAILABLE", reason=str(error)))
        except Exception as error:
            log.exception("%s cannot be loaded", path)
            self._put(replace(entry, state="UNAVAILABLE", reason=f"{type(error).__name__}: {error}"))
        else:
            self._put(replace(entry, state="READY", encoder=encoder))

    async def _open(self, entry: Entry, path: Path) -> Encoder:
        bundle = await asyncio.to_thread(bundles.read, path)
        manifest = bundle.manifest
        if (manifest.name, manifest.version) != (entry.name, entry.version):
            raise BundleError(
                f"{path} holds {manifest.name} version {manifest.version}: a bundle is served from "
                "REPOSITORY/NAME/VERSION under its own name. Move it there, or export it under this one"
            )
        model = _model(bundle)
        tokenizer = await asyncio.to_thread(Tokenizer, bundle.file(manifest.tokenizer), manifest.max_tokens)
        await self._engine.load(model)
        return Encoder(manifest, tokenizer, model)

    async def _unload(self, entry: Entry, reason: str) -> None:
        # Taken from the index first: nobody finds it any more, so what is in the engine only shrinks.
        self._put(replace(entry, state="UNLOADING", encoder=None))
        if entry.encoder is not None:
            await self._engine.unload(entry.encoder.model)
        self._put(replace(entry, state="UNAVAILABLE", encoder=None, reason=reason))

    def _put(self, entry: Entry) -> None:
        self._entries[entry.name, entry.version] = entry
        self._changed(entry)


def _model(bundle: Bundle) -> Model:
    """The graph that serves the bundle: its first variant."""
    manifest, variant = bundle.manifest, bundle.manifest.variants[0]
    return Model(
        encoder=manifest.name,
        version=manifest.version,
        variant=variant.name,
        graph=bundle.file(variant.files[0]),
        inputs=variant.inputs,
        dimensions=manifest.dimensions,
        max_tokens=manifest.max_tokens,
        pad_id=manifest.pad_id,
    )
