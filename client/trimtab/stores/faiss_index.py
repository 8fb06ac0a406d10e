"""FAISS indexes as a store needs them: which kinds are accepted, and what a search must return.

If an approximate index does not look far enough, FAISS silently returns fewer rows than requested. Here the
search is widened, to every row if necessary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isqrt
from typing import IO, Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import durable
from trimtab.errors import ConfigError, FailedPrecondition
from trimtab.kinds import Similarity
from trimtab.stores.base import Form, Matrix
from trimtab.values.similarity import nearest, normalised

faiss: Any = _faiss  # its stubs leave out half of what is used here

LEAST_PROBES = 16  # lists of an IVF index, if not configured
LEAST_CANDIDATES = 64  # of an HNSW index, likewise
_UNSET_PROBES = 1  # what FAISS writes into a file if it is not configured
_LENGTH = 0.01  # how far the length of a vector compared by cosine may be from 1
_CHUNK = 65_536
# The kinds that keep vectors as they were added. Others compress or change them.
_TAKEN = ("IndexFlat", "IndexFlatIP", "IndexFlatL2", "IndexHNSWFlat", "IndexIVFFlat")
# FAISS has no cosine. For vectors of length 1 it is the dot product, and distance gives the same order.
_METRICS: dict[Similarity, tuple[int, ...]] = {
    "cosine": (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2),
    "dot": (faiss.METRIC_INNER_PRODUCT,),
    "euclidean": (faiss.METRIC_L2,),
    "manhattan": (faiss.METRIC_L1,),
}
_NAMES = {
    faiss.METRIC_INNER_PRODUCT: "the dot product (METRIC_INNER_PRODUCT)",
    faiss.METRIC_L2: "Euclidean distance (METRIC_L2)",
    faiss.METRIC_L1: "Manhattan distance (METRIC_L1)",
}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of an approximate index is searched; None leaves it to the index.

    nprobe: lists of an IVF index. ef_search: candidates that an HNSW index keeps.
    """

    nprobe: int | None = None
    ef_search: int | None = None


LEFT_TO_THE_INDEX = Effort()


class FaissIndex:
    """A FAISS index whose rows are numbered from 0."""

    def __init__(self, index: Any, form: Form, effort: Effort = LEFT_TO_THE_INDEX) -> None:
        self.faiss = index
        self._form = form
        self._ivf = isinstance(index, faiss.IndexIVF)
        self._hnsw = isinstance(index, faiss.IndexHNSW)
        self._effort = 0
        if self._ivf:
            unset = max(LEAST_PROBES, isqrt(index.nlist))
            self._effort = effort.nprobe or (unset if index.nprobe == _UNSET_PROBES else index.nprobe)
        elif self._hnsw:
            self._effort = effort.ef_search or max(LEAST_CANDIDATES, index.hnsw.efSearch)
        # A vector of length 0 has cosine 0 with all others, which no distance expresses.
        self._zeros = False

    @property
    def count(self) -> int:
        """How many rows there are."""
        return int(self.faiss.ntotal)

    def add(self, vectors: Matrix) -> None:
        """Append rows (n, d)."""
        self.faiss.add(np.ascontiguousarray(vectors))

    def vectors(self, rows: Sequence[int]) -> Matrix:
        """The vectors of these rows."""
        found = np.empty((len(rows), self._form.dimensions), np.float32)
        for place, row in enumerate(rows):
            found[place] = self.faiss.reconstruct(row)
        return found

    def chunks(self) -> Iterator[tuple[int, Matrix]]:
        """All vectors in parts, each with the number of its first row."""
        for start in range(0, self.count, _CHUNK):
            yield start, self.faiss.reconstruct_n(start, min(_CHUNK, self.count - start))

    def check_lengths(self, name: str) -> None:
        """FailedPrecondition if vectors that are compared by cosine have a length other than 1 or 0."""
        if self._form.similarity != "cosine":
            return
        wrong, first, length = 0, 0, 0.0
        for start, vectors in self.chunks():
            lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
            self._zeros = self._zeros or not lengths.all()
            bad = (np.abs(lengths - 1) > _LENGTH) & (lengths > 0)
            if bad.any() and not wrong:
                first, length = start + int(bad.argmax()), float(lengths[bad.argmax()])
            wrong += int(bad.sum())
        if wrong:
            raise FailedPrecondition(
                f"{name} holds a vector of length {length:.3g} in row {first:,}, and {wrong:,} of "
                f"{self.count:,} are not of length 1: FAISS knows no cosine, only the dot product of vectors "
                "of length 1. Normalise them, or name another similarity in the store's catalogue"
            )

    def search(self, query: Matrix, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows of the k nearest, as exact as the index; always k if there are that many.

        query: (d,). The scores are those of `trimtab.values.similarity.scores`.
        """
        k = min(k, self.count)
        if k == 0:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        cosine = self._form.similarity == "cosine"
        row = normalised(query[None]) if cosine else query[None]
        by_distance = self.faiss.metric_type != faiss.METRIC_INNER_PRODUCT
        if cosine and by_distance and (self._zeros or not row.any()):
            return self._exactly(query, k)
        effort, most = self._effort, self._most()
        while True:
            distances, rows = self.faiss.search(row, k, params=self._parameters(effort))
            kept = rows[0] >= 0
            if kept.all():
                return self._scores(distances[0]), rows[0]
            if effort >= most:
                return self._exactly(query, k)
            effort = min(2 * effort, most)

    def with_vectors(self, vectors: Matrix) -> "FaissIndex":
        """An index of the same kind and training, with these rows (n, d) only."""
        index = faiss.clone_index(self.faiss)
        index.reset()  # keeps its training
        found = FaissIndex(index, self._form)
        found.add(vectors)
        return found

    def write(self, stream: durable.Replacement) -> None:
        """Write the index into a file."""
        faiss.write_index(self.faiss, faiss.PyCallbackIOWriter(stream.write))

    def _most(self) -> int:
        """The effort at which a search looks at every row."""
        if self._ivf:
            return int(self.faiss.nlist)
        return self.count if self._hnsw else 0

    def _parameters(self, effort: int) -> Any:
        if self._ivf:
            return faiss.SearchParametersIVF(nprobe=min(effort, self.faiss.nlist))
        return faiss.SearchParametersHNSW(efSearch=effort) if self._hnsw else None

    def _exactly(self, query: Matrix, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Compare with every vector."""
        near, rows = nearest(query, (part for _, part in self.chunks()), self._form.similarity, k)
        return near, rows.astype(np.int64)

    def _scores(self, distances: NDArray[np.float32]) -> NDArray[np.float32]:
        metric = self.faiss.metric_type
        if metric == faiss.METRIC_INNER_PRODUCT:
            return distances
        if self._form.similarity == "cosine":  # from the squared distance of vectors of length 1
            return np.asarray(1 - distances / 2, np.float32)
        squared = metric == faiss.METRIC_L2
        return np.asarray(-np.sqrt(distances) if squared else -distances, np.float32)


def flat(form: Form) -> Any:
    """An empty index that compares with every vector."""
    metric = _METRICS[form.similarity][0]
    return faiss.IndexFlat(form.dimensions, metric)


def read(stream: IO[bytes], form: Form, effort: Effort) -> FaissIndex:
    """The index in a file. FailedPrecondition if a store of this form cannot use it."""
    name = stream.name
    try:
        index = faiss.read_index(faiss.PyCallbackIOReader(stream.read))
    except RuntimeError as error:
        raise FailedPrecondition(f"{name} is no FAISS index: {last_line(error)}") from None
    if index.d != form.dimensions:
        raise FailedPrecondition(
            f"{name} has {index.d} dimensions, the store's catalogue says {form.dimensions}"
        )
    _check_kind(name, index, effort)
    if index.metric_type not in _METRICS[form.similarity]:
        fitting = " or ".join(_NAMES[metric] for metric in _METRICS[form.similarity])
        raise FailedPrecondition(
            f"{name} ranks by {_NAMES.get(index.metric_type, 'another metric')}, and the store's catalogue "
            f"says similarity {form.similarity!r}, which needs {fitting}. Correct the catalogue, "
            "or build the index with that metric"
        )
    if isinstance(index, faiss.IndexIVF):
        try:
            index.make_direct_map()  # without it, no vector can be read back
        except RuntimeError:
            raise FailedPrecondition(
                f"{name} does not number its rows 0, 1, 2, ...; build it without ids of its own, "
                "and write them as rows"
            ) from None
    found = FaissIndex(index, form, effort)
    found.check_lengths(name)
    return found


def _check_kind(name: str, index: Any, effort: Effort) -> None:
    """Refuse an index that does not keep vectors unchanged, or options that it does not have."""
    kind = type(index).__name__
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        raise FailedPrecondition(
            f"{name} numbers its rows by an IndexIDMap; write the index inside it, and its ids as rows"
        )
    hnsw = isinstance(index, faiss.IndexHNSW)
    if kind not in _TAKEN or (hnsw and type(faiss.downcast_index(index.storage)).__name__ not in _TAKEN):
        raise FailedPrecondition(
            f"{name} is an {kind}, which does not return vectors as they were; Flat, HNSW and IVF "
            "indexes over flat vectors are taken over (such as Flat, HNSW32, IVF100,Flat). Build one of these"
        )
    if not index.is_trained:
        raise FailedPrecondition(
            f"{name} is an {kind} that was not trained, so that nothing can be added to it; train it first"
        )
    fits = {"nprobe": isinstance(index, faiss.IndexIVF), "ef_search": hnsw}
    for option, wanted in asdict(effort).items():
        if wanted is not None and not fits[option]:
            raise ConfigError(f"{name} is an {kind}, which has no {option}; leave out {option}={wanted}")


def last_line(error: Exception) -> str:
    """FAISS's message without the source location."""
    return str(error).strip().splitlines()[-1]
