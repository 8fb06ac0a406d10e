"""The adapters of the repository: read, opened, and found by the spaces they lead to.

An adapter is an ONNX graph, whatever kind of map it is, and so the server knows of no kind. All adapters of
the repository are there, whichever encoder they belong to: a request's route may lead through several.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from trimtab import adapter as adapters
from trimtab import bundle as bundles
from trimtab import variants
from trimtab.adapter import Adapter, AdapterManifest, Endpoint
from trimtab.bundle import Manifest
from trimtab.errors import AdapterError, FailedPrecondition, InternalError, NotFound, TrimtabError
from trimtab.signatures import Signers
from trimtab_server import limited
from trimtab_server.callers import access
from trimtab_server.devices import runtime
from trimtab_server.devices.session import checked
from trimtab_server.spaces import routes
from trimtab_server.spaces.watching import Watch, Watched

log = logging.getLogger(__name__)

T = TypeVar("T")
Vectors = NDArray[np.float32]

# The rows that a graph is tried with when it is opened, as many as a batch may bring.
TRIAL_ROWS = 32
TRIALS = 3


class AdapterSession:
    """An adapter's graph in ONNX Runtime, on the CPU: a row is too little work for the way to a GPU."""

    def __init__(self, adapter: Adapter) -> None:
        manifest = adapter.manifest
        options = runtime.options()
        path = adapter.file(manifest.graph)
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base
            raise AdapterError(f"{path} cannot be loaded: {error}. Fit the adapter again") from None
        inputs = {each.name: each for each in self._session.get_inputs()}
        wanted = {"vectors", "group"} if manifest.groups else {"vectors"}
        if set(inputs) != wanted or [each.name for each in self._session.get_outputs()] != ["adapted"]:
            raise AdapterError(
                f"{path} takes {', '.join(inputs)}; the graph of this adapter takes "
                f"{' and '.join(sorted(wanted))}, and gives 'adapted'. Fit the adapter again"
            )
        width = inputs["vectors"].shape[-1]
        more = width - manifest.source.dimensions if isinstance(width, int) else -1
        if more < 0 or (more > 0) != (manifest.reads == "states"):
            raise AdapterError(
                f"{path} takes vectors of {width} components, and its manifest says that it reads the "
                f"{manifest.reads} of an encoder of {manifest.source.dimensions}. Fit the adapter again"
            )
        self.states_width = more
        self._dimensions = manifest.target.dimensions
        self._groups = {name: number for number, name in enumerate(manifest.groups, start=1)}
        rows = np.full((TRIAL_ROWS, width), width**-0.5, np.float32)
        try:
            self.run(rows, [""] * TRIAL_ROWS)
        except Exception as error:  # as above
            raise AdapterError(f"{path} cannot be run: {error}. Fit the adapter again") from None
        seconds = []
        for _ in range(TRIALS):
            begun = time.perf_counter()
            self.run(rows, [""] * TRIAL_ROWS)
            seconds.append(time.perf_counter() - begun)
        self.row_seconds = min(seconds) / TRIAL_ROWS

    def run(self, vectors: Vectors, groups: Sequence[str]) -> Vectors:
        """Rows of the source space in, float32 (n, d_in), their places in the target space out.

        groups[i] is the group of row i; one that the adapter does not know is none of its groups.
        """
        feeds: dict[str, NDArray[np.generic]] = {"vectors": np.ascontiguousarray(vectors)}
        if self._groups:
            feeds["group"] = np.array([self._groups.get(group, 0) for group in groups], np.int64)
        return checked(runtime.run(self._session, ["adapted"], feeds)[0], (len(vectors), self._dimensions))


@dataclass(frozen=True, eq=False, slots=True)
class Loaded:
    """An adapter of the repository; without a session it cannot be used, and `problem` says why."""

    encoder: str  # in whose folder it lies
    manifest: AdapterManifest
    sha256: str  # of the manifest, and through it of every file
    session: AdapterSession | None
    problem: str
    target: Manifest | None  # of the bundle whose space the adapter leads to, where the repository has it
    watched: Watched | None  # where it has the calibration queries that live ones are compared with

    @property
    def name(self) -> str:
        """ENCODER/NAME."""
        return f"{self.encoder}/{self.manifest.name}"

    @property
    def states_width(self) -> int:
        """How many components it reads beside the embedding."""
        return self.session.states_width if self.session else 0

    @property
    def row_seconds(self) -> float:
        """About what a row costs."""
        return self.session.row_seconds if self.session else 0.0

    def see(self, rows: Vectors) -> None:
        """These rows, in its source space, are live queries on their way through it."""
        if self.watched is not None:
            self.watched.see(rows)

    def run(self, vectors: Vectors, groups: Sequence[str]) -> Vectors:
        """As the session does. Raises InternalError where that fails, or where there is none."""
        if self.session is None:
            raise InternalError(f"adapter {self.name} is in a route, and cannot be used: {self.problem}")
        try:
            return self.session.run(vectors, groups)
        except Exception as error:
            raise InternalError(f"adapter {self.name} failed: {type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class Route:
    """How an encoder's vectors come into a space: through these adapters, one after the other."""

    space: str
    hops: tuple[Loaded, ...]  # none: the space is the encoder's own
    dimensions: int
    normalized: bool | None  # None: nobody knows
    int8_limit: float | None

    @property
    def names(self) -> list[str]:
        """ENCODER/NAME of the adapters."""
        return [hop.name for hop in self.hops]


class Adapters:
    """All adapters of a repository, and the routes through them. For one event loop."""

    def __init__(self, watch: Watch, signers: Signers | None = None, load_seconds: float = 60.0) -> None:
        self._watch = watch
        self._load_seconds = load_seconds
        self._signers = signers  # None: anybody's adapters are used
        self._read: dict[str, tuple[Loaded, ...]] = {}  # by encoder, as they are on disk
        self._links: tuple[Loaded, ...] = ()  # as requests see them
        self._own: dict[str, Manifest] = {}  # the encoders that are served, by their spaces
        self._routes: dict[tuple[str, int, str, tuple[str, ...]], tuple[Loaded, ...]] = {}

    def all(self) -> Sequence[Loaded]:
        """Every adapter of the encoders that the caller may use, by encoder and name; also the unusable."""
        may_use = access.current().may_use
        return [loaded for loaded in self._links if may_use(loaded.encoder)]

    def route(self, encoder: Manifest, states_width: int, wanted: str) -> Route:
        """How vectors of this encoder come into another space. Raises as routes.find does."""
        key = (encoder.space, states_width, wanted, access.current().encoders)
        hops = self._routes.get(key)
        if hops is None:  # only what there is is kept: a caller may ask for anything
            hops = self._routes[key] = self._find(encoder, states_width, wanted)
        last = hops[-1]
        there = own(last.target) if last.target else None
        return Route(
            wanted,
            hops,
            last.manifest.target.dimensions,
            there.normalized if there else None,
            there.int8_limit if there else None,
        )

    def _find(self, encoder: Manifest, states_width: int, wanted: str) -> tuple[Loaded, ...]:
        try:
            return routes.find(self.all(), encoder.space, wanted, states_width)
        except NotFound:
            whose = self._own.get(wanted)
            if whose is None or not access.current().may_use(whose.name):
                raise
            fit = f"`trimtab adapter fit --from {_reference(encoder)} --to {_reference(whose)}`"
            raise FailedPrecondition(
                f"space {wanted} is that of {variants.title(whose)}, and no adapter leads there from "
                f"{encoder.space}, that of {variants.title(encoder)}: ask {whose.name}, or fit an adapter "
                f"with {fit}"
            ) from None

    def usable(self, encoder: str) -> list[Loaded]:
        """The encoder's adapters, as requests see them, whoever asks."""
        return [loaded for loaded in self._links if loaded.encoder == encoder]

    async def read(self, repository: Path, encoder: str) -> tuple[Loaded, ...]:
        """The encoder's adapters as they are on disk now; those that are known already are not opened again.

        One that cannot be read or opened keeps no other from it. Nothing changes for requests until `put` and
        `publish`.
        """
        if not bundles.NAME.fullmatch(encoder):  # no encoder, and perhaps a path that leads elsewhere
            return ()
        listed = await self._step(f"reading {repository / encoder}", partial(_listed, repository, encoder))
        found = []
        for path in listed:
            try:
                work = partial(self._read_one, repository, encoder, path)
                found.append(await self._step(f"loading adapter {path}", work))
            except TrimtabError as error:  # without a manifest there is nothing to show for it
                log.error("%s: %s", path, error)
            except Exception as error:  # whatever a foreign file made of it
                log.error("%s cannot be read: %s: %s", path, type(error).__name__, error)
        return tuple(found)

    async def _step(self, what: str, work: Callable[[], T]) -> T:
        return await limited.run(self._load_seconds, what, work)

    def _read_one(self, repository: Path, encoder: str, path: Path) -> Loaded:
        if not path.resolve().is_relative_to(repository.resolve()):
            raise AdapterError("it is a link that leads out of the repository: put the adapter into it")
        sha256 = hashlib.sha256((path / adapters.MANIFEST).read_bytes()).hexdigest()
        for before in self._read.get(encoder, ()):
            if before.name == f"{encoder}/{path.name}" and before.sha256 == sha256 and before.session:
                return before
        return self._open(repository, encoder, path, sha256)

    def put(self, encoder: str, found: tuple[Loaded, ...]) -> None:
        """These are the encoder's adapters from now on: `wants_states` knows them, requests not yet."""
        gone = set(self.of(encoder)) - set(found)
        self._read[encoder] = found
        for loaded in gone:
            if loaded.watched is not None:
                loaded.watched.close()

    def of(self, encoder: str) -> tuple[Loaded, ...]:
        """The encoder's adapters, as they were put."""
        return self._read.get(encoder, ())

    def wants_states(self, manifest: Manifest) -> bool:
        """Whether an adapter of this encoder version reads inner states that its bundle can give."""
        states = manifest.variants[0].states
        return states is not None and any(
            loaded.states_width == states.width
            and loaded.manifest.source.space == manifest.space
            and not routes.refusal(loaded)
            for loaded in self.of(manifest.name)
        )

    def publish(self, encoders: Iterable[tuple[Manifest, int]]) -> None:
        """Let requests see what was put, all at once, beside these encoders and the width of their states.

        Of each version its bundle's manifest comes first, then those of other variants that are loaded.
        """
        served: dict[tuple[str, int], tuple[Manifest, int]] = {}
        self._own = {}
        for manifest, width in encoders:
            served.setdefault((manifest.name, manifest.version), (manifest, width))
            self._own[manifest.space] = manifest
        self._links = tuple(
            replace(loaded, problem=loaded.problem or _mismatch(loaded, served))
            for encoder in sorted(self._read)
            for loaded in self._read[encoder]
        )
        self._routes = {}

    def _open(self, repository: Path, encoder: str, path: Path, sha256: str) -> Loaded:
        manifest = adapters.KIND.manifest(path, AdapterManifest)
        session, watched, problem = None, None, ""
        try:
            if (manifest.name, manifest.source.encoder) != (path.name, encoder):
                raise AdapterError(
                    f"{path} holds {manifest.name}, which maps vectors of {manifest.source.encoder}: an "
                    "adapter is served from REPOSITORY/ENCODER/adapters/NAME under its own name. Move it"
                )
            adapter = adapters.read(path)
            if self._signers is not None:
                self._signers.check(adapters.KIND, path, manifest)
            session = AdapterSession(adapter)
            watched = self._watched(adapter)
        except Exception as error:  # whatever a foreign file made of it
            problem = str(error) if isinstance(error, TrimtabError) else f"{type(error).__name__}: {error}"
            log.error("%s: %s", path, problem)
            session = None
        target = _target(repository, manifest.target, self._signers)
        return Loaded(encoder, manifest, sha256, session, problem, target, watched)

    def _watched(self, adapter: Adapter) -> Watched | None:
        queries, source = adapter.baseline(), adapter.manifest.source
        if queries is None:
            return None
        if queries.ndim != 2 or queries.shape[1] != source.dimensions:
            raise AdapterError(
                f"the queries in {adapter.path} are of shape {queries.shape}, in a space of "
                f"{source.dimensions} dimensions. Fit the adapter again"
            )
        try:
            return self._watch.open(source.encoder, source.version, adapter.manifest.name, queries)
        except AdapterError as error:  # it can do its work all the same
            log.warning("%s: %s", adapter.path, error)
            return None


def _listed(repository: Path, encoder: str) -> list[Path]:
    return list(adapters.adapters(repository, encoder))


def own(encoder: Manifest) -> Route:
    """The route into an encoder's own space."""
    # The bundle's range was calibrated with all dimensions; the first of a narrower variant's are larger.
    variant = encoder.variants[0]
    calibrated = variant.dimensions is None or variant.int8_limit is not None
    limit = encoder.int8_limit if calibrated else None
    return Route(encoder.space, (), encoder.dimensions, encoder.normalized, limit)


def _reference(encoder: Manifest) -> str:
    """A bundle, or a variant of one, as `trimtab adapter fit` takes it."""
    variant = encoder.variants[0]
    return f"{encoder.name}/{encoder.version}" + (f":{variant.name}" if variant.space is not None else "")


def _target(repository: Path, end: Endpoint, signers: Signers | None) -> Manifest | None:
    """The manifest of the bundle or variant whose space this is, where the repository still has it."""
    path = repository / bundles.check_name(end.encoder) / str(end.version)
    try:
        manifest = bundles.read(path, verify=False).manifest
        if signers is not None:
            signers.check(bundles.BUNDLE, path, manifest)
    except TrimtabError:
        return None
    return variants.of_space(manifest, end.space)


def _mismatch(loaded: Loaded, served: Mapping[tuple[str, int], tuple[Manifest, int]]) -> str:
    """What is wrong with an adapter whose encoder version is served, and is not the one it was fitted for."""
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
