"""From a folder to a loaded encoder: read, check, tokenizer, graphs."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import variants
from trimtab.artifacts.artifact import provisional
from trimtab.artifacts.bundle import Bundle
from trimtab.artifacts.cards import TRAINED_ON
from trimtab.artifacts.manifest import BundleVariant
from trimtab.artifacts.signatures import Signers
from trimtab.errors import BundleError, Unimplemented
from trimtab.inputs.graph import Tried
from trimtab_server import limited
from trimtab_server.catalog import ondisk
from trimtab_server.catalog.encoder import LoadedEncoder, given, model_of, others, stored
from trimtab_server.catalog.lifecycle import Lifecycle
from trimtab_server.catalog.ondisk import OnDisk, Stamps
from trimtab_server.engine.batch import Model, Payload
from trimtab_server.engine.port import ComputeRequest, EnginePort, Turn
from trimtab_server.engine.runners.rehearsal import Piece, ProcessorPiece, RehearsalResult
from trimtab_server.engine.runners.rehearsal_pool import Rehearsals
from trimtab_server.engine.runners.runner import GraphError
from trimtab_server.inputs.known import READERS
from trimtab_server.inputs.reader import ItemReader
from trimtab_server.spaces.adapters import Adapters
from trimtab_server.spaces.route import Vectors

log = logging.getLogger(__name__)

T = TypeVar("T")
# The tenant of texts that are embedded for policies. No caller's name: those are printable.
TENANT = "\0load"


class Opener:
    """Loads the bundles of the repository `path` into the engine.

    With `signers`, only bundles that they signed. `wanted` names, by encoder, the variants to load besides
    the first. `policies` may refuse a version. Tokenizers and graphs are tried in `rehearsals`, if given.
    `loaded` is called after each load, with the seconds of its stages.
    """

    def __init__(
        self,
        path: Path,
        engine: EnginePort,
        adapters: Adapters,
        *,
        signers: Signers | None = None,
        wanted: Mapping[str, tuple[str, ...]] | None = None,
        policies: Sequence[Lifecycle] = (),
        load_seconds: float = 60.0,
        rehearsals: Rehearsals | None = None,
        loaded: Callable[[str, int, Mapping[str, float]], None] = lambda name, version, seconds: None,
    ) -> None:
        self._path = path
        self._engine = engine
        self._adapters = adapters
        self._signers = signers
        self._wanted = wanted or {}
        self._policies = policies
        self._load_seconds = load_seconds
        self._rehearsals = rehearsals
        self._loaded = loaded
        self._lock = limited.PatientLock()
        self._on_disk = OnDisk()

    async def open(self, name: str, version: int, path: Path) -> LoadedEncoder:
        """The encoder in the folder `path`, loaded and warm, with its configured variants.

        Raises BundleError if it cannot be read, or is not NAME/VERSION; ConfigError if it cannot be loaded as
        configured.
        """
        async with self._lock.hold():
            return await self._open(name, version, path)

    async def _open(self, name: str, version: int, path: Path) -> LoadedEncoder:
        begun = time.monotonic()
        bundle, stamps = await self._step(f"reading {path}", partial(self._read, path))
        manifest, read = bundle.manifest, time.monotonic()
        if (manifest.name, manifest.version) != (name, version):
            raise BundleError(
                f"{path} holds {manifest.name} version {manifest.version}: a bundle is served from "
                "REPOSITORY/NAME/VERSION under its own name. Move it there, or export it under this one"
            )
        beside = others(manifest, self._wanted.get(name, ()))
        policies = [policy for policy in self._policies if policy.concerns(name)]
        for policy in policies:
            policy.check(manifest, self._adapters.of(name))
        if len(manifest.towers) > 1:
            raise Unimplemented(
                f"{path} has {len(manifest.towers)} towers, and this server serves encoders of one"
            )
        found = await self._rehearse_processor(bundle)
        reader = await self._step(f"loading the processor of {path}", partial(_reader, bundle))
        with_states = self._adapters.wants_states(manifest)
        first = _model(bundle, manifest.variants[0], reader, found, with_states=with_states)
        models = [first, *(_model(bundle, variant, reader, found) for variant in beside)]
        await self._step(f"reading {path}", partial(_check_rest, bundle, models))
        tokenized = time.monotonic()
        await self._rehearse(models)
        rehearsed = time.monotonic()
        numbers = await self._load_models(models)
        seconds = {
            "read": read - begun, "tokenizer": tokenized - read, "rehearsal": rehearsed - tokenized,
            "graph": time.monotonic() - rehearsed,
        }  # fmt: skip
        alone = [variants.alone(manifest, variant) for variant in beside]
        rest = {
            model.variant: LoadedEncoder(each, reader, model, number, given(each))
            for each, model, number in zip(alone, models[1:], numbers[1:], strict=True)
        }
        encoder = LoadedEncoder(manifest, reader, first, numbers[0], given(manifest), rest)
        seconds |= await self._ask(policies, encoder)
        stages = ", ".join(f"{stage} {each:.3f} s" for stage, each in seconds.items())
        log.info("%s version %s was loaded: %s", manifest.name, manifest.version, stages)
        for variant in beside:
            if variant.report.fidelity is not None and variant.report.fidelity.provisional:
                whose = f"variant {variant.name} of {manifest.name} version {manifest.version}"
                log.warning("the report card of %s is %s", whose, provisional(TRAINED_ON))
        self._loaded(manifest.name, manifest.version, seconds)
        self._on_disk.remember(manifest, stamps)
        return encoder

    async def _ask(self, policies: Sequence[Lifecycle], encoder: LoadedEncoder) -> dict[str, float]:
        """Show a warm version to the policies. Returns the seconds of those that take time. If one refuses
        the version, it is unloaded."""
        seconds: dict[str, float] = {}
        try:
            for policy in policies:
                begun = time.monotonic()
                await policy.opened(encoder, partial(self._embed, encoder))
                if policy.stage:
                    seconds[policy.stage] = time.monotonic() - begun
        except BaseException:
            for policy in policies:
                policy.closed(encoder.name, encoder.version)
            await self.close([graph.number for graph in encoder.graphs()])
            raise
        return seconds

    async def change_states(self, before: LoadedEncoder, path: Path) -> LoadedEncoder:
        """The same encoder with the graph that its adapters want now, with or without inner states."""
        bundle, _ = await self._step(f"reading {path}", partial(self._read, path))
        if bundle.manifest != before.manifest:
            raise BundleError(f"{path} holds another bundle than the one that was loaded")
        first, with_states = bundle.manifest.variants[0], self._adapters.wants_states(bundle.manifest)
        found = await self._rehearse_processor(bundle)
        model = _model(bundle, first, before.reader, found, with_states=with_states)
        await self._rehearse([model])
        return replace(before, model=model, number=await self._engine.load(model))

    async def compare(self, encoder: LoadedEncoder, path: Path) -> None:
        """Raise BundleError if an encoder's folder `path` has changed since it was loaded."""
        await self._step(f"reading {path}", partial(self._on_disk.compare, encoder.manifest, path))

    async def close(self, models: Sequence[int]) -> None:
        """Unload graphs by their numbers, once what they have accepted is answered."""
        for model in models:
            await self._engine.unload(model)

    async def _embed(self, encoder: LoadedEncoder, texts: list[str]) -> Vectors:
        """Whole vectors of texts that include their prompts, float32 (n, dimensions)."""

        reader, column = encoder.reader, encoder.vectors

        def read() -> list[Payload]:
            return reader.payloads(reader.read(texts, "end"), "end", str)

        payloads = await asyncio.to_thread(read)
        turn = Turn(TENANT, TENANT, "bulk", None)
        computed = await self._engine.compute(ComputeRequest(0, encoder.number, turn, payloads, (column,)))
        return computed.result[column].values

    async def _rehearse_processor(self, bundle: Bundle) -> RehearsalResult:
        """Try a tokenizer or the like in a process of its own. BundleError if that fails."""
        given = bundle.manifest.input
        if self._rehearsals is None or given.processor is None:
            return RehearsalResult()
        piece = ProcessorPiece(given.kind, bundle.path, stored(given.processor))
        return await self._try(self._rehearsals, bundle.file(given.processor), piece)

    async def _rehearse(self, models: Sequence[Model]) -> None:
        """The same of graphs."""
        if self._rehearsals is None:
            return
        for model in models:
            await self._try(self._rehearsals, model.graph, self._rehearsals.graph(model))

    async def _try(self, rehearsals: Rehearsals, path: Path, piece: Piece) -> RehearsalResult:
        heartbeat = limited.Heartbeat()
        work = partial(rehearsals.rehearse, piece, heartbeat.step)
        try:
            # The pool itself limits the steps; this is for when even its processes do not start.
            return await limited.run(2 * self._load_seconds, f"rehearsing {path}", work, heartbeat)
        except GraphError as error:
            raise BundleError(f"{path}: {error}") from None

    async def _load_models(self, models: Sequence[Model]) -> list[int]:
        """Load all of them, or none. Returns their numbers."""
        loaded: list[int] = []
        try:
            for model in models:
                loaded.append(await self._engine.load(model))
        except Exception:
            await self.close(loaded)
            raise
        return loaded

    async def _step(self, what: str, work: Callable[[], T]) -> T:
        return await limited.run(self._load_seconds, what, work)

    def _read(self, path: Path) -> tuple[Bundle, Stamps]:
        trusted = self._signers.check if self._signers is not None else None
        bundle = bundles.read(path, verify=False, within=self._path, trusted=trusted)
        return bundle, ondisk.stamps(path, bundle.manifest)


def _model(
    bundle: Bundle,
    variant: BundleVariant,
    reader: ItemReader,
    found: RehearsalResult,
    *,
    with_states: bool = False,
) -> Model:
    """A graph, given what the rehearsal of its input's processor found."""
    fed = reader.graph_input(variant.inputs, Tried(max(1, found.fewest), found.highest))
    return model_of(bundle, variant, fed, with_states=with_states)


def _reader(bundle: Bundle) -> ItemReader:
    """What reads a bundle's input."""
    given = bundle.manifest.input
    if given.processor is None:
        return READERS[given.kind].open(given, b"", str(bundle.path))
    content = bundles.BUNDLE.content(bundle.path, given.processor)
    return READERS[given.kind].open(given, bytes(content), str(bundle.file(given.processor)))


def _check_rest(bundle: Bundle, models: Sequence[Model]) -> None:
    """Hash the files that no model reads; the models' files are hashed when they are read."""
    read = {file.path for model in models for file in model.files}
    for file in bundle.manifest.files():
        if file.path not in read:
            limited.step()  # each may be large, and the limit is for one
            bundles.BUNDLE.check(bundle.path, file, verify=True)
