"""The adapters of the repository: read, opened, and found by the spaces they lead to.

An adapter is an ONNX graph, so the server need not know which kind of map it is. Adapters of all encoders are
kept together, since a request's route may lead through several.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import variants
from trimtab.artifacts.manifest import Manifest
from trimtab.artifacts.signatures import Signers
from trimtab.errors import (
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from trimtab_server import limited
from trimtab_server.callers.access import Caller
from trimtab_server.engine.runners import runtime
from trimtab_server.engine.runners.adapter_host import AdapterHost
from trimtab_server.engine.runners.rehearsal_pool import Rehearsals
from trimtab_server.spaces import reading, routes
from trimtab_server.spaces.reading import AdapterReader
from trimtab_server.spaces.route import LoadedAdapter, Route, own
from trimtab_server.spaces.watching import DriftMonitor

log = logging.getLogger(__name__)

# How many adapters of one encoder are opened at a time.
AT_ONCE = 4
# How many routes are cached. The key includes what the caller may use, and tokens may name anything.
MOST_ROUTES = 4096


class Adapters:
    """All adapters of a repository, and the routes through them. For one event loop."""

    def __init__(
        self,
        monitor: DriftMonitor,
        signers: Signers | None = None,
        load_seconds: float = 60.0,
        rehearsals: Rehearsals | None = None,
        host: AdapterHost | None = None,
    ) -> None:
        self._host = host or AdapterHost()
        self._reader = AdapterReader(monitor, signers, rehearsals, self._host)
        self._load_seconds = load_seconds
        self._read: dict[str, tuple[LoadedAdapter, ...]] = {}  # by encoder, as they are on disk
        self._retired: dict[LoadedAdapter, str] = {}  # those that failed in use, and why
        self._served: dict[tuple[str, int], tuple[Manifest, int]] = {}
        self._unread: dict[str, dict[str, str]] = {}  # those that could not be read, by encoder, and why
        self._links: tuple[LoadedAdapter, ...] = ()  # as requests see them
        self._own: dict[str, Manifest] = {}  # the encoders that are served, by their spaces
        self._routes: dict[tuple[str, int, str, tuple[str, ...]], tuple[LoadedAdapter, ...]] = {}

    def all(self, caller: Caller) -> Sequence[LoadedAdapter]:
        """Every adapter of the encoders that the caller may use, by encoder and name, including unusable
        ones."""
        return [loaded for loaded in self._links if caller.may_use(loaded.encoder)]

    def route(self, caller: Caller, encoder: Manifest, states_width: int, wanted: str) -> Route:
        """The route of this encoder's vectors into another space, through adapters that the caller may use.

        Raises as routes.find does.
        """
        key = (encoder.space, states_width, wanted, caller.encoders)
        hops = self._routes.get(key)
        if hops is None:  # only what exists is cached: a caller may ask for anything
            if len(self._routes) >= MOST_ROUTES:
                self._routes.clear()
            hops = self._routes[key] = self._find(caller, encoder, states_width, wanted)
        end, target = hops[-1].manifest.target, hops[-1].target
        if target is not None:
            return replace(own(target), hops=hops)
        return Route(wanted, hops, end.dimensions, None, None, None, end.encoder, end.version)

    def _find(
        self, caller: Caller, encoder: Manifest, states_width: int, wanted: str
    ) -> tuple[LoadedAdapter, ...]:
        try:
            return routes.find(self.all(caller), encoder.space, wanted, states_width)
        except NotFound:
            whose = self._own.get(wanted)
            if whose is None or not caller.may_use(whose.name):
                raise
            fit = f"`trimtab adapter fit --from {_reference(encoder)} --to {_reference(whose)}`"
            raise FailedPrecondition(
                f"space {wanted} is that of {variants.title(whose)}, and no adapter leads there from "
                f"{encoder.space}, that of {variants.title(encoder)}: ask {whose.name}, or fit an adapter "
                f"with {fit}"
            ) from None

    def usable(self, encoder: str) -> list[LoadedAdapter]:
        """The encoder's adapters, as requests see them, for any caller."""
        return [loaded for loaded in self._links if loaded.encoder == encoder]

    async def read(self, repository: Path, encoder: str) -> tuple[LoadedAdapter, ...]:
        """The encoder's adapters as they are on disk now; known ones are not opened again.

        One that cannot be read or opened does not affect the others. Nothing changes for requests until `put`
        and `publish`.
        """
        if not bundles.NAME.fullmatch(encoder):  # not an encoder, and perhaps a path that leads elsewhere
            return ()
        what = f"reading {repository / encoder}"
        listed = await limited.run(self._load_seconds, what, partial(reading.listed, repository, encoder))
        unread: dict[str, str] = {}
        known = {loaded.name: loaded for loaded in self.of(encoder)}
        at_once = asyncio.Semaphore(AT_ONCE)

        async def one(path: Path) -> LoadedAdapter | None:
            heartbeat = limited.Heartbeat()
            work = partial(self._read_one, repository, encoder, path, heartbeat.step)
            async with at_once:  # one that hangs does not keep the others waiting
                try:
                    # The pool itself limits its steps.
                    what = f"loading adapter {path}"
                    return await limited.run(2 * self._load_seconds, what, work, heartbeat)
                except Exception as error:  # a foreign file may raise anything
                    log.error("%s: %s", path, runtime.told(error))
                    unread[path.name] = runtime.told(error)
                    # A volume that is unavailable for a while does not remove adapters.
                    away = isinstance(error, FailedPrecondition | Unavailable)
                    return known.get(f"{encoder}/{path.name}") if away else None

        found = [loaded for loaded in await asyncio.gather(*map(one, listed)) if loaded is not None]
        self._unread[encoder] = unread
        return tuple(found)

    def problems(self, encoder: str) -> dict[str, str]:
        """By name, what is wrong with the encoder's adapters that could not be read or opened."""
        found = {each.manifest.name: self._problem(each) for each in self.of(encoder) if self._problem(each)}
        return found | self._unread.get(encoder, {})

    def _read_one(
        self, repository: Path, encoder: str, path: Path, step: Callable[[], None]
    ) -> LoadedAdapter:
        content = adapters.KIND.manifest_bytes(path, within=repository)
        sha256 = hashlib.sha256(content).hexdigest()
        for before in self._read.get(encoder, ()):
            same = before.name == f"{encoder}/{path.name}" and before.sha256 == sha256
            if same and before.session is not None and before not in self._retired:
                return before
        return self._reader.open(repository, encoder, path, sha256, step)

    def _problem(self, loaded: LoadedAdapter) -> str:
        return loaded.problem or self._retired.get(loaded, "")

    def put(self, encoder: str, found: tuple[LoadedAdapter, ...]) -> None:
        """These are the encoder's adapters from now on: `wants_states` knows them, requests do not yet."""
        gone = set(self.of(encoder)) - set(found)
        self._read[encoder] = found
        for loaded in gone:
            self._retired.pop(loaded, None)
            if loaded.watched is not None:
                loaded.watched.close()
            if loaded.session is not None:
                self._host.close(loaded.session)

    def retire(self, loaded: LoadedAdapter, why: str) -> None:
        """Stop using an adapter until it is loaded again."""
        known = [each for each in self.of(loaded.encoder) if each.session is loaded.session]
        for each in known:
            log.error("adapter %s is no longer used: %s", each.name, why)
            self._retired[each] = f"{why}. Load the encoder again to try it"
        self._show()

    def of(self, encoder: str) -> tuple[LoadedAdapter, ...]:
        """The encoder's adapters, as they were put."""
        return self._read.get(encoder, ())

    def wants_states(self, manifest: Manifest) -> bool:
        """Whether an adapter of this encoder version reads inner states that its bundle has."""
        states = manifest.variants[0].states
        return states is not None and any(
            loaded.states_width == states.width
            and loaded.manifest.source.space == manifest.space
            and not routes.refusal(loaded)
            for loaded in self.of(manifest.name)
        )

    def publish(self, encoders: Iterable[tuple[Manifest, int]]) -> None:
        """Show requests all at once what was put, given the served encoders and the widths of their states.

        For each version, its bundle's manifest comes first, then those of other loaded variants.
        """
        served = self._served = {}
        self._own = {}
        for manifest, width in encoders:
            served.setdefault((manifest.name, manifest.version), (manifest, width))
            self._own[manifest.space] = manifest
        self._show()

    def _show(self) -> None:
        self._links = tuple(
            replace(loaded, problem=self._problem(loaded) or _mismatch(loaded, self._served))
            for encoder in sorted(self._read)
            for loaded in self._read[encoder]
        )
        self._routes = {}


def _reference(encoder: Manifest) -> str:
    """A bundle, or a variant of one, as `trimtab adapter fit` takes it."""
    variant = encoder.variants[0]
    return f"{encoder.name}/{encoder.version}" + (f":{variant.name}" if variant.moved else "")


def _mismatch(loaded: LoadedAdapter, served: Mapping[tuple[str, int], tuple[Manifest, int]]) -> str:
    """What is wrong with an adapter if the served encoder version is not the one it was fitted for."""
    source = loaded.manifest.source
    bundle, states_width = served.get((source.encoder, source.version), (None, 0))
    if bundle is None:
        return ""
    there = variants.of_space(bundle, source.space)
    if there is None or there.dimensions != source.dimensions:
        return (
            f"it was fitted for space {source.space} of {source.dimensions} dimensions, and "
            f"{source.encoder} version {source.version} as served here is of space {bundle.space} and "
            f"{bundle.dimensions} dimensions. Fit it again with `trimtab adapter fit`"
        )
    states = there.variants[0].states
    if loaded.states_width and (states is None or states.width != loaded.states_width):
        return (
            f"it reads {loaded.states_width} components of inner states, and the bundle of {source.encoder} "
            f"version {source.version} has {states.width if states else 'none'}. Export the encoder again, "
            "and fit it again with `trimtab adapter fit`"
        )
    if loaded.states_width not in (0, states_width):
        return (
            f"the graph of {source.encoder} version {source.version} that gives inner states could not be "
            "loaded: the server's log says why. Load the encoder again"
        )
    return ""
