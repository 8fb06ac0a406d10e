"""FAISS in a folder, with what FAISS itself does not keep: ids, texts, the space, and writes that last.

The folder is read into memory as a whole. One process writes at a time; others read meanwhile, and see in
each call what was written before it. What is written goes to the log of the folder (see
trimtab.stores.folder) and is searched beside the index, exactly; once the log has more rows than the index,
and when the store is closed, both become a new index of the same kind.
"""

import errno
from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import FailedPrecondition, NotFound, Unavailable
from trimtab.stores import folder as files
from trimtab.stores.base import (
    Document,
    Form,
    Hit,
    Id,
    Matrix,
    Rows,
    Store,
    best,
    check_query,
    check_rows,
    files_identity,
    normalised,
    order,
)
from trimtab.stores.folder import Catalogue, Record, Row

LEAST_COMPACTED = 1024  # rows in the log before it is worth writing the index anew
_TRIES = 10


class FaissStore(Store):
    """A folder with a FAISS index."""

    def __init__(self, folder: Path, name: str) -> None:
        import faiss

        self.name, self._folder, self._faiss = name, folder, faiss
        self._guard = RLock()
        self._lock: IO[bytes] | None = None  # while this process is the writer
        self._log: files.LogWriter | None = None
        self._stamp: tuple[int, int] | None = None
        self._ordered: list[Id] | None = None  # all ids in order, once somebody asks
        self._log_path = folder
        self._end = 0  # of what was read of the log
        with self._reaching():
            self._refresh()

    @classmethod
    def create(cls, folder: Path, name: str, form: Form) -> "FaissStore":
        """The store in `folder`, made with this form where there is none."""
        import faiss

        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / files.CATALOGUE).exists():
            with files.lock(folder, name):
                faiss.write_index(_flat(faiss, form), str(folder / "index-0.faiss"))
                files.sync(folder / "index-0.faiss")
                files.write_rows(folder / "rows-0.jsonl", [])
                files.write_catalogue(
                    folder,
                    Catalogue(
                        space=form.space,
                        dimensions=form.dimensions,
                        similarity=form.similarity,
                        index="index-0.faiss",
                        rows="rows-0.jsonl",
                    ),
                )
        return cls(folder, name)

    def identity(self) -> frozenset[Hashable]:
        with self._current():
            catalogue = self._catalogue
            names = (files.CATALOGUE, catalogue.index, catalogue.rows, self._log_path.name)
        return files_identity(self._folder, *(self._folder / name for name in names))

    def count(self) -> int:
        with self._current():
            return len(self._place)

    def page(self, after: Id | None, size: int) -> list[Document]:
        with self._current():
            if self._ordered is None:
                self._ordered = sorted(self._place, key=order)
            start = 0 if after is None else bisect_right(self._ordered, order(after), key=order)
            return [self._documents[self._place[id]] for id in self._ordered[start : start + size]]

    def sample(self, count: int) -> list[Id]:
        with self._current():
            ids = list(self._place)
        chosen = np.random.default_rng().permutation(len(ids))[:count]
        return [ids[place] for place in chosen]

    def get(self, ids: Sequence[Id]) -> Rows:
        with self._current():
            places = [self._place[id] for id in ids if id in self._place]
            return Rows([self._documents[place] for place in places], self._vectors(places))

    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        with self._current():
            return {id: self._documents[self._place[id]].text for id in ids if id in self._place}

    def search(self, vector: Matrix, k: int) -> list[Hit]:
        query = check_query(self, vector, k)
        with self._current():
            halves = [self._search(self._index, query, k, 0), self._search(self._tail, query, k, self._base)]
            near, places = (np.concatenate(part) for part in zip(*halves, strict=True))
            found = [(self._documents[places[at]], float(near[at])) for at in best(near, k)]
        return [Hit(document.id, document.text, score) for document, score in found]

    def upsert(self, rows: Rows) -> None:
        vectors = check_rows(self, rows)
        if self.form.similarity == "cosine":
            vectors = normalised(vectors)
        written = [Row(document.id, document.text) for document in rows.documents]
        if written:
            self._write(Record(rows=written, vectors=vectors.astype("<f4", copy=False).tobytes()))

    def delete(self, ids: Collection[Id]) -> None:
        with self._current():
            present = [id for id in ids if id in self._place]
        if present:
            self._write(Record(deleted=present))

    def close(self) -> None:
        """Close the store; where this process has written, the log becomes part of the index."""
        with self._guard, self._reaching():
            try:
                if self._log is not None and self._end:
                    self._compact(self._log)
            finally:
                self._release()

    # What is in memory: the rows of the index, then those of the log. A document that was written again has a
    # later place, and its former row counts no more.

    @contextmanager
    def _current(self) -> Iterator[None]:
        """All that was written before, by whatever process."""
        with self._guard, self._reaching():
            if self._lock is None:
                self._refresh()
            yield

    def _refresh(self) -> None:
        missing: FileNotFoundError | None = None
        for _ in range(_TRIES):
            try:
                stamp = self._look()
                if stamp != self._stamp:
                    self._stamp = None
                    self._load(files.read_catalogue(self._folder))
                    self._stamp = stamp
                for record, end in files.read_log(self._log_path, self._end):
                    self._apply(record)
                    self._end = end
                if self._look() == stamp:  # otherwise a writer began a new generation meanwhile
                    return
            except FileNotFoundError as error:
                missing = error
        if missing is not None:
            raise NotFound(f"{self.name} is no store: {missing.filename} is missing")
        raise Unavailable(f"{self.name} is written anew faster than it can be read; try again")

    def _look(self) -> tuple[int, int]:
        found = (self._folder / files.CATALOGUE).stat()
        return found.st_ino, found.st_mtime_ns

    def _load(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.form = Form(
            space=catalogue.space, dimensions=catalogue.dimensions, similarity=catalogue.similarity
        )
        self._index = _read(self._faiss, self._folder / catalogue.index, self.form)
        self._tail = _flat(self._faiss, self.form)
        rows = files.read_rows(self._folder / catalogue.rows)
        if len(rows) != self._index.ntotal:
            raise FailedPrecondition(
                f"{self.name}: {catalogue.rows} has {len(rows):,} lines for the {self._index.ntotal:,} rows "
                f"of {catalogue.index}; each row needs one line, in the same order"
            )
        self._base = len(rows)
        self._documents = [Document(row.id, row.text) for row in rows]
        self._place: dict[Id, int] = {row.id: place for place, row in enumerate(rows)}
        if len(self._place) != len(rows):
            raise FailedPrecondition(f"{self.name}: {catalogue.rows} has an id twice; give each id once")
        self._dead = {"index": 0, "tail": 0}
        self._ordered = None
        self._log_path = files.log_path(self._folder, catalogue.generation)
        self._end = 0

    def _apply(self, record: Record) -> None:
        for id in record.deleted:
            self._forget(id)
        for row in record.rows:
            self._forget(row.id)
            self._place[row.id] = len(self._documents)
            self._documents.append(Document(row.id, row.text))
        self._tail.add(np.frombuffer(record.vectors, "<f4").reshape(-1, self.form.dimensions))

    def _forget(self, id: Id) -> None:
        self._ordered = None
        place = self._place.pop(id, None)
        if place is not None:
            self._dead["index" if place < self._base else "tail"] += 1

    def _vectors(self, places: Sequence[int]) -> Matrix:
        vectors = np.empty((len(places), self.form.dimensions), np.float32)
        for row, place in enumerate(places):
            in_index = place < self._base
            vectors[row] = (self._index if in_index else self._tail).reconstruct(
                place if in_index else place - self._base
            )
        return vectors

    def _search(
        self, index: Any, query: Matrix, k: int, first: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and places of the k nearest rows of an index, whose rows begin at place `first`."""
        asked = min(k + self._dead["index" if index is self._index else "tail"], index.ntotal)
        if asked == 0:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        row = normalised(query[None]) if self.form.similarity == "cosine" else query[None]
        distances, rows = (found[0] for found in index.search(row, asked))
        places = np.where(rows < 0, -1, rows + first)
        kept = [place >= 0 and self._counts(place) for place in places.tolist()]
        return _as_scores(self._faiss, index, distances[kept], self.form), places[kept]

    def _counts(self, place: int) -> bool:
        """Whether a row is its document's latest."""
        return self._place.get(self._documents[place].id) == place

    # Writing

    def _write(self, record: Record) -> None:
        with self._guard, self._reaching():
            log = self._log or self._become_writer()
            try:
                self._end = log.append(record)
            except OSError:
                self._release()  # the next write cuts off what there is of this one
                raise
            self._apply(record)
            if self._tail.ntotal > max(LEAST_COMPACTED, self._base):
                self._compact(log)

    def _become_writer(self) -> files.LogWriter:
        lock = files.lock(self._folder, self.name)
        try:
            self._refresh()
            files.sweep(self._folder, self._catalogue)
            log = files.LogWriter(self._log_path, self._end)
        except BaseException:
            lock.close()
            raise
        self._lock, self._log = lock, log
        return log

    def _release(self) -> None:
        for held in (self._log, self._lock):
            if held is not None:
                held.close()
        self._log = self._lock = None

    def _compact(self, log: files.LogWriter) -> None:
        """Write index and log as the next generation."""
        former, generation = self._catalogue, self._catalogue.generation + 1
        places = sorted(self._place.values())
        index = self._faiss.clone_index(self._index)
        index.reset()  # keeps what it was trained to
        index.add(self._vectors(places))
        catalogue = Catalogue(
            space=self.form.space,
            dimensions=self.form.dimensions,
            similarity=self.form.similarity,
            index=f"index-{generation}.faiss",
            rows=f"rows-{generation}.jsonl",
            generation=generation,
        )
        self._faiss.write_index(index, str(self._folder / catalogue.index))
        files.sync(self._folder / catalogue.index)
        documents = [self._documents[place] for place in places]
        files.write_rows(
            self._folder / catalogue.rows, [Row(document.id, document.text) for document in documents]
        )
        files.write_catalogue(self._folder, catalogue)
        for stale in (former.index, former.rows, files.log_path(self._folder, former.generation).name):
            (self._folder / stale).unlink(missing_ok=True)
        log.close()
        self._load(catalogue)
        self._stamp = self._look()
        self._log = files.LogWriter(self._log_path, 0)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cure = "make room on the disk" if error.errno == errno.ENOSPC else "see to the disk"
            raise Unavailable(
                f"{self.name} cannot be used: {error.strerror or error}; {cure}, and go on"
            ) from None
        except RuntimeError as error:  # FAISS's word for everything
            raise Unavailable(f"{self.name} cannot be used: FAISS says: {_last_line(error)}") from None


def _flat(faiss: Any, form: Form) -> Any:
    metric = {
        "cosine": faiss.METRIC_INNER_PRODUCT,
        "dot": faiss.METRIC_INNER_PRODUCT,
        "euclidean": faiss.METRIC_L2,
        "manhattan": faiss.METRIC_L1,
    }[form.similarity]
    return faiss.IndexFlat(form.dimensions, metric)


def _read(faiss: Any, path: Path, form: Form) -> Any:
    """The index of a file; FailedPrecondition where it is not what the catalogue says."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise FailedPrecondition(f"{path} is no FAISS index: {_last_line(error)}") from None
    if index.d != form.dimensions:
        raise FailedPrecondition(f"{path} has {index.d} dimensions, {files.CATALOGUE} says {form.dimensions}")
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        raise FailedPrecondition(
            f"{path} numbers its rows by an IndexIDMap; write the index inside it, and its ids as rows"
        )
    if isinstance(index, faiss.IndexIVF):
        index.make_direct_map()  # without it, no vector can be read back
    if form.similarity == "cosine" and index.ntotal:
        length = float(np.linalg.norm(index.reconstruct(0)))
        if abs(length - 1) > 0.1:
            raise FailedPrecondition(
                f"{path} holds a vector of length {length:.3g}: FAISS knows no cosine, only the dot product "
                f"of vectors of length 1. Normalise them, or name another similarity in {files.CATALOGUE}"
            )
    return index


def _as_scores(faiss: Any, index: Any, distances: NDArray[np.float32], form: Form) -> NDArray[np.float32]:
    if index.metric_type == faiss.METRIC_INNER_PRODUCT:
        return distances
    if form.similarity == "cosine":  # of vectors of length 1, from their squared distance
        return np.asarray(1 - distances / 2, np.float32)
    squared = index.metric_type == faiss.METRIC_L2
    return np.asarray(-np.sqrt(distances) if squared else -distances, np.float32)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
