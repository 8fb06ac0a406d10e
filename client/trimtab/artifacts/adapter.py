"""Adapters: small maps from a new encoder's space into an old one's, and what is known about them.

    REPOSITORY/ENCODER/adapters/NAME/
        adapter.json     the manifest, defined by this module
        adapter.onnx     the map: `vectors` float32 (n, d_in), with groups also `group` int64 (n,), to
                         `adapted` float32 (n, d_out), normalised if the target space is
        queries.npy      float16 (m, d): calibration queries in the source space, the baseline of query drift

ENCODER is the encoder whose vectors the adapter maps. As with a bundle, the folder appears complete, never
changes, and the manifest names every file with its SHA-256 and its size.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import ArrayLike, NDArray

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import ranges
from trimtab.artifacts.artifact import File, Interval, Kind, Struct, Trusted
from trimtab.errors import AdapterError
from trimtab.kinds import Reads, Verdict

FORMAT = 2  # 1: the names of its spaces left the architecture out
MANIFEST = "adapter.json"
FOLDER = "adapters"
MOST_QUERIES_BYTES = 256 << 20

SERVED: tuple[Verdict, ...] = ("bridge", "cascade")
"""The verdicts that let the server use an adapter."""

KIND = Kind(
    one="an adapter",
    noun="the adapter",
    manifest_name=MANIFEST,
    format=FORMAT,
    error=AdapterError,
    make="trimtab adapter fit",
    redo="fit it again",
)


class Endpoint(Struct, frozen=True):
    """One end of an adapter: an encoder's version, and the space of its vectors."""

    encoder: ranges.Name
    version: ranges.Version
    space: ranges.Space
    dimensions: ranges.Dimensions


class Calibrator(Struct, frozen=True):
    """A strictly increasing, piecewise linear map from adapted scores to the scores of the target space.

    `adapted` and `target` are the knots: at least two, both strictly increasing. Outside them, the first and
    the last slope continue.
    """

    adapted: Annotated[tuple[float, ...], Meta(max_length=100_000)]
    target: Annotated[tuple[float, ...], Meta(max_length=100_000)]

    def __post_init__(self) -> None:
        knots = np.array([self.adapted, self.target]) if len(self.adapted) == len(self.target) else None
        if (
            knots is None
            or knots.shape[1] < 2
            or not (np.isfinite(knots).all() and (np.diff(knots) > 0).all())
        ):
            raise ValueError(
                "a calibrator has two or more pairs of finite knots, strictly increasing in both"
            )

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """The scores, of any shape, on the target space's scale; their order and ties are kept."""
        given = np.asarray(scores, dtype=np.float64)
        adapted, target = np.array(self.adapted), np.array(self.target)
        piece = np.clip(np.searchsorted(adapted, given, side="right") - 1, 0, len(adapted) - 2)
        slopes = np.diff(target) / np.diff(adapted)
        result: NDArray[np.float64] = target[piece] + (given - adapted[piece]) * slopes[piece]
        return result


class Quality(Struct, frozen=True):
    """Retrieval over the test queries: the mean of each measure."""

    recall_1: ranges.Quality
    recall_10: ranges.Quality
    recall_100: ranges.Quality
    ndcg_10: ranges.Quality


class Arms(Struct, frozen=True):
    """The ways to search, compared over the same test queries and documents."""

    old_on_old: Quality  # the old encoder's queries on its own index: the present state
    naive: Quality | None  # the new encoder's queries on the old index, unadapted; None: no equal dimensions
    adapted: Quality  # the same through the adapter
    cascade: Quality  # the adapted query's first candidates, rescored in the new space
    reindexed: Quality  # the new encoder on an index of its own


class Rung(Struct, frozen=True):
    """One rung of the ladder: its result on the select queries, and how much worse it is than the best.

    `behind` is the paired bootstrap of (best rung - this one), in Recall@10: if the interval includes 0, the
    two cannot be distinguished.
    """

    name: str
    recall_10: ranges.Quality
    behind: Interval
    seconds: ranges.Duration  # how long the fit took


class Check(Struct, frozen=True):
    """A check made before the figures are believed, and its result."""

    name: str
    passed: bool
    finding: str


class Counts(Struct, frozen=True):
    """How much data there was for fitting and judging. The three sets of queries share no text."""

    fit_texts: ranges.Count
    fit_queries: ranges.Count
    select_queries: ranges.Count
    test_queries: ranges.Count
    documents: ranges.Count  # how many were searched
    fit_pairs: ranges.Count = 0  # queries with right documents, used for fitting


class AdapterReport(Struct, frozen=True):
    """An adapter's measurements; `truth`: against given pairs, or against the old encoder's ranking."""

    truth: Literal["pairs", "old ranking"]
    counts: Counts
    arms: Arms
    against_old: Interval  # Recall@10 of adapted / old on old
    against_reindexed: Interval  # Recall@10 of adapted / new re-indexed
    cascade_against_reindexed: Interval
    cascade_depth: ranges.Some
    rungs: tuple[Rung, ...]
    checks: tuple[Check, ...]
    microseconds_alone: ranges.Duration  # of the map for one query
    microseconds_batched: ranges.Duration  # for one query of a batch of 64
    machine: str


class AdapterProvenance(Struct, frozen=True):
    """What the adapter was made from."""

    command: str
    texts_sha256: str
    queries_sha256: str | None
    pairs_sha256: str | None
    old_vectors: str | None
    libraries: Mapping[str, str]


class AdapterManifest(Struct, frozen=True):
    """An adapter's manifest: the two spaces, the map, and the gate's verdict with its reasons."""

    name: ranges.Name
    created: str
    source: Endpoint
    target: Endpoint
    rung: str
    reads: Reads  # "states": a row of `vectors` is [embedding | pooled states of the layers]
    graph: File
    queries: File | None
    calibrator: Calibrator | None
    verdict: Verdict
    provisional: bool  # judged without pairs
    reasons: tuple[str, ...]
    report: AdapterReport
    provenance: AdapterProvenance
    groups: Annotated[
        tuple[str, ...], Meta(max_length=4096)
    ] = ()  # group i + 1 of the graph's input is groups[i]; 0 is none of them
    format: int = FORMAT


class AdapterFolder(Struct, frozen=True):
    """An adapter on disk."""

    path: Path
    manifest: AdapterManifest

    def file(self, file: File) -> Path:
        """The absolute path of one of the adapter's files."""
        return self.path / file.path

    def baseline(self) -> NDArray[np.float16] | None:
        """The calibration queries in the source space, float16 (m, dimensions); None if none were given.

        Raises AdapterError if the file holds anything else.
        """
        file = self.manifest.queries
        if file is None:
            return None
        path, dimensions = self.file(file), self.manifest.source.dimensions
        if file.size > MOST_QUERIES_BYTES:
            raise AdapterError(f"{path} has {file.size} bytes; at most {MOST_QUERIES_BYTES} are read")
        content = KIND.content(self.path, file)
        try:
            vectors = _array(content)
        except Exception as error:  # NumPy's header parser raises many types
            raise AdapterError(f"{path} cannot be read: {error}. Fit the adapter again") from None
        if vectors.dtype != np.float16 or vectors.shape[1:] != (dimensions,) or not len(vectors):
            raise AdapterError(
                f"{path} holds {vectors.dtype} {vectors.shape} instead of queries, float16 (m, "
                f"{dimensions}): fit the adapter again"
            )
        return vectors


def read(
    path: Path, *, verify: bool = True, within: Path | None = None, trusted: Trusted | None = None
) -> AdapterFolder:
    """Read the adapter in the folder `path`; with `verify`, hash every file it names.

    Raises AdapterError, which names the file and says what to do, if the folder is not a complete, unchanged
    adapter, leads out of the folder `within`, or has a manifest that is not `trusted`.
    """
    manifest = KIND.manifest(path, AdapterManifest, within=within, trusted=trusted)
    if len(set(manifest.groups)) < len(manifest.groups) or "" in manifest.groups:
        raise AdapterError(f"{path / MANIFEST} has duplicate or empty group names. Fit the adapter again")
    for file in files(manifest):
        KIND.check(path, file, verify)
    return AdapterFolder(path=path, manifest=manifest)


def _array(content: bytearray) -> NDArray[Any]:
    """The array of a .npy file. ValueError if it is invalid, holds objects, or is shorter than it claims."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version} of .npy")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    rest = len(content) - stream.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != rest or not dtype.itemsize:
        raise ValueError(f"its header promises {dtype} {shape}, and {rest} bytes follow")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


def files(manifest: AdapterManifest) -> Iterator[File]:
    """Every file that a manifest names."""
    yield manifest.graph
    if manifest.queries is not None:
        yield manifest.queries


def encoders(repository: Path) -> Iterator[str]:
    """The encoders of a repository that have a folder of adapters, in order."""
    for entry in sorted(repository.iterdir()):
        with contextlib.suppress(OSError):  # an unreadable folder must not hide the others
            if bundles.NAME.fullmatch(entry.name) and (entry / FOLDER).is_dir():
                yield entry.name


def adapters(repository: Path, encoder: str) -> Iterator[Path]:
    """The folders of an encoder's adapters, sorted by name; unfinished ones are left out."""
    folder = repository / bundles.check_name(encoder) / FOLDER
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if bundles.NAME.fullmatch(entry.name) and entry.is_dir():
                yield entry
