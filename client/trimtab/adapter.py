"""Adapters: small maps from a new encoder's space into an old one's, and what is known of them.

    REPOSITORY/ENCODER/adapters/NAME/
        adapter.json     what this module defines
        adapter.onnx     the map: `vectors` float32 (n, d_in), with groups also `group` int64 (n,), to
                         `adapted` float32 (n, d_out), normalised where the target space is
        queries.npy      float16 (m, d): calibration queries in the source space; query drift starts there

ENCODER is the encoder whose vectors the adapter maps. Like a bundle the folder appears whole, is never
changed, and every file is named in the manifest with its SHA-256 and its size.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trimtab import bundle as bundles
from trimtab.bundle import File, Struct
from trimtab.errors import AdapterError

FORMAT = 2  # 1: the names of its spaces left the architecture out
MANIFEST = "adapter.json"
FOLDER = "adapters"

Verdict = Literal["bridge", "cascade", "re-index", "stay"]
Reads = Literal["embeddings", "states"]

SERVED: tuple[Verdict, ...] = ("bridge", "cascade")
"""The verdicts with which the server may use an adapter."""

KIND = bundles.Kind(
    one="an adapter",
    noun="the adapter",
    manifest_name=MANIFEST,
    format=FORMAT,
    error=AdapterError,
    make="trimtab adapter fit",
    redo="fit it again",
)


class Endpoint(Struct, frozen=True):
    """One end of an adapter: an encoder's version, and the space that its vectors lie in."""

    encoder: str
    version: int
    space: str
    dimensions: int


class Calibrator(Struct, frozen=True):
    """A strictly increasing, piecewise linear map from adapted scores to the scores of the target space.

    `adapted` and `target` are the knots, at least two, both strictly increasing; outside them the first and
    the last slope go on.
    """

    adapted: tuple[float, ...]
    target: tuple[float, ...]

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
        """The scores, of any shape, on the target space's scale; their order and their ties stay."""
        given = np.asarray(scores, dtype=np.float64)
        adapted, target = np.array(self.adapted), np.array(self.target)
        piece = np.clip(np.searchsorted(adapted, given, side="right") - 1, 0, len(adapted) - 2)
        slopes = np.diff(target) / np.diff(adapted)
        result: NDArray[np.float64] = target[piece] + (given - adapted[piece]) * slopes[piece]
        return result


class Interval(Struct, frozen=True):
    """A figure with the 95% interval of its bootstrap."""

    value: float
    low: float
    high: float


class Quality(Struct, frozen=True):
    """Retrieval over the test queries: the mean of each measure."""

    recall_1: float
    recall_10: float
    recall_100: float
    ndcg_10: float


class Arms(Struct, frozen=True):
    """The ways to search side by side, over the same test queries and documents."""

    old_on_old: Quality  # the old encoder's queries on its own index: what there is today
    naive: Quality | None  # the new encoder's queries on the old index, unadapted; None: no equal dimensions
    adapted: Quality  # the same through the adapter
    cascade: Quality  # the adapted query's first candidates, scored again in the new space
    reindexed: Quality  # the new encoder on an index of its own


class Rung(Struct, frozen=True):
    """One rung of the ladder: how it did on the select queries, and how much worse than the best it is.

    `behind` is the paired bootstrap of (best rung - this one), in Recall@10: where it reaches 0, the two
    cannot be told apart.
    """

    name: str
    recall_10: float
    behind: Interval
    seconds: float  # what the fit took


class Check(Struct, frozen=True):
    """Something that was looked at before the figures are believed, and what was found."""

    name: str
    passed: bool
    finding: str


class Counts(Struct, frozen=True):
    """How much there was to learn from and to judge by. The three sets of queries share no text."""

    fit_texts: int
    fit_queries: int
    select_queries: int
    test_queries: int
    documents: int  # that were searched
    fit_pairs: int = 0  # queries whose right documents were learned from


class AdapterReport(Struct, frozen=True):
    """What was measured of an adapter; `truth`: against given pairs, or against the old encoder's ranking."""

    truth: Literal["pairs", "old ranking"]
    counts: Counts
    arms: Arms
    against_old: Interval  # Recall@10 of adapted / old on old
    against_reindexed: Interval  # Recall@10 of adapted / new re-indexed
    cascade_against_reindexed: Interval
    cascade_depth: int
    rungs: tuple[Rung, ...]
    checks: tuple[Check, ...]
    microseconds_alone: float  # of the map for one query
    microseconds_batched: float  # for one query of a batch of 64
    machine: str


class AdapterProvenance(Struct, frozen=True):
    """Of what the adapter was made."""

    command: str
    texts_sha256: str
    queries_sha256: str | None
    pairs_sha256: str | None
    old_vectors: str | None
    libraries: Mapping[str, str]


class AdapterManifest(Struct, frozen=True):
    """What an adapter is: the two spaces, the map, the gate's verdict and why."""

    name: str
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
    groups: tuple[str, ...] = ()  # group i + 1 of the graph's input is groups[i]; 0 is none of them
    format: int = FORMAT


class Adapter(Struct, frozen=True):
    """An adapter on disk."""

    path: Path
    manifest: AdapterManifest

    def file(self, file: File) -> Path:
        """The absolute path of one of the adapter's files."""
        return self.path / file.path

    def baseline(self) -> NDArray[np.float16] | None:
        """The calibration queries in the source space, float16 (m, dimensions); None: none were given."""
        if self.manifest.queries is None:
            return None
        path = self.file(self.manifest.queries)
        try:
            # Mapped, so that a header may announce what it likes: only what is in the file is read. Whatever
            # NumPy's parser of headers raises (it is Python's own tokenizer), the file is none.
            vectors: NDArray[np.float16] = np.array(np.lib.format.open_memmap(path, mode="r"))
        except Exception as error:
            raise AdapterError(f"{path} cannot be read: {error}. Fit the adapter again") from None
        if vectors.dtype != np.float16 or vectors.ndim != 2:
            raise AdapterError(
                f"{path} holds {vectors.dtype} of shape {vectors.shape} and not float16 (m, dimensions): "
                "fit the adapter again"
            )
        return vectors


def read(path: Path, *, verify: bool = True) -> Adapter:
    """Read the adapter in the folder `path`; with `verify`, hash every file it names.

    Raises AdapterError, which names the file and says what to do, where the folder is not a whole and
    untouched adapter.
    """
    manifest = KIND.manifest(path, AdapterManifest)
    for file in files(manifest):
        KIND.check(path, file, verify)
    return Adapter(path=path, manifest=manifest)


def files(manifest: AdapterManifest) -> Iterator[File]:
    """Every file that a manifest names."""
    yield manifest.graph
    if manifest.queries is not None:
        yield manifest.queries


def encoders(repository: Path) -> Iterator[str]:
    """The encoders of a repository that have a folder of adapters, in order."""
    for entry in sorted(repository.iterdir()):
        if bundles.NAME.fullmatch(entry.name) and (entry / FOLDER).is_dir():
            yield entry.name


def adapters(repository: Path, encoder: str) -> Iterator[Path]:
    """The folders of an encoder's adapters, in order of their names; unfinished ones are left out."""
    folder = repository / bundles.check_name(encoder) / FOLDER
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if bundles.NAME.fullmatch(entry.name) and entry.is_dir():
                yield entry
