"""FAISS in a folder, with what FAISS itself does not keep: ids, texts, the space, and writes that last.

The folder is read into memory as a whole. One process writes at a time; others read meanwhile, and see in
each call what was written before it. What is written goes to the log of the folder (see
trimtab.stores.folder) and is searched beside the index, exactly; once the log has more rows than the index,
and when the store is closed, both become a new index of the same kind.
"""

import errno
import logging
from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import IO

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab import forks
from trimtab.artifacts import durable
from trimtab.artifacts.durable import Sum
from trimtab.errors import DamagedError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from trimtab.stores import folder as files
from trimtab.stores.address import Address, whole
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
from trimtab.stores.faiss_index import LEFT_TO_THE_INDEX, Effort, Index, flat, last_line, read
from trimtab.stores.folder import Catalogue, Generation, Record, Row

_log = logging.getLogger(__name__)
LEAST_COMPACTED = 1024  # rows in the log before it is worth writing the index anew
MOST_AT_ONCE = 1 << 30  # bytes of one write, which becomes one record
_TRIES = 10


class FaissStore(Store):
    """A folder with a FAISS index."""

    def __init__(self, folder: Path, name: str, effort: Effort = LEFT_TO_THE_INDEX) -> None:
        self.name, self._folder, self._effort = name, folder, effort
        self._guard, self._process = RLock(), forks.generation()
        self._lock: IO[bytes] | None = None  # while this process is the writer
        self._log: files.LogWriter | None = None
        self._stamp: files.Stamp | None = None
        self._ordered: list[Id] | None = None  # all ids in order, once somebody asks
        self._log_path, self._end = folder, 0  # what was read of the log
        self._log_stamp: files.Stamp | None = None
        with self._reaching():
            self._refresh()

    @classmethod
    def create(cls, folder: Path, name: str, form: Form, effort: Effort = LEFT_TO_THE_INDEX) -> "FaissStore":
        """The store in `folder`, made with this form where there is none.

        FailedPrecondition where there is none, but files of such names.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / files.CATALOGUE).exists():
                files.check_vacant(folder, name)
                with files.lock(folder, name):
                    if not (folder / files.CATALOGUE).exists():  # again: who had the lock may have made it
                        files.write_catalogue(folder, files.empty(form))
        except OSError as error:
            raise _unusable(name, error) from None
        return cls(folder, name, effort)

    def identity(self) -> frozenset[Hashable]:
        with self._current():
            names = set().union(*(each.files for each in self._catalogue.generations))
        return files_identity(self._folder, *(self._folder / name for name in (files.CATALOGUE, *names)))

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
            halves = [
                self._search(self._index, query, k + self._dead["index"], 0),
                self._search(self._tail, query, k + self._dead["tail"], self._base),
            ]
            near, places = (np.concatenate(part) for part in zip(*halves, strict=True))
            found = [(self._documents[places[at]], float(near[at])) for at in best(near, k)]
        return [Hit(document.id, document.text, score) for document, score in found]

    def upsert(self, rows: Rows) -> None:
        vectors = check_rows(self, rows)
        if self.form.similarity == "cosine":
            vectors = normalised(vectors)
        written = [Row(document.id, document.text) for document in rows.documents]
        size = vectors.nbytes + sum(len(row.text or "") for row in written)
        if size > MOST_AT_ONCE:
            raise InvalidArgument(
                f"{self.name} was given {size:,} bytes of vectors and texts, and takes {MOST_AT_ONCE:,} at "
                "once; write fewer documents at a time"
            )
        if written:
            self._write(Record(rows=written, vectors=vectors.astype("<f4", copy=False).tobytes()))

    def delete(self, ids: Collection[Id]) -> None:
        with self._current():
            present = [id for id in ids if id in self._place]
        if present:
            self._write(Record(deleted=present))

    def close(self) -> None:
        """Close the store; where this process has written, the log becomes part of the index."""
        with self._held():
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
        with self._held():
            if self._lock is None:
                self._refresh()
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The store, for this thread alone."""
        if self._process != forks.generation():
            # After a fork the parent is the writer still, and its threads are not here to let go.
            self._process, self._guard = forks.generation(), RLock()
            self._start_over()
        with self._guard, self._reaching():
            yield

    def _refresh(self) -> None:
        path, missing = self._folder / files.CATALOGUE, None
        for _ in range(_TRIES):
            try:
                stamp = files.stamp(path)
                if stamp is None:
                    raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
                if stamp != self._stamp:
                    self._stamp = None
                    self._load(files.read_catalogue(self._folder))
                    self._stamp = stamp
                log_stamp = files.stamp(self._log_path)
                if log_stamp != self._log_stamp:
                    self._read_on()
                    self._log_stamp = log_stamp
                if files.stamp(path) == stamp:  # otherwise a writer began a new generation meanwhile
                    return
            except FileNotFoundError as error:
                missing = error
        if missing is not None:
            raise NotFound(f"{self.name} is no store: {missing.filename} is missing")
        raise Unavailable(f"{self.name} is written anew faster than it can be read; try again")

    def _load(self, catalogue: Catalogue) -> None:
        """The newest generation that is whole, without what the last log says."""
        self._catalogue = catalogue
        self.form = Form(
            space=catalogue.space, dimensions=catalogue.dimensions, similarity=catalogue.similarity
        )
        wrong: FileNotFoundError | DamagedError | None = None
        for generation in catalogue.generations:
            try:
                self._load_generation(generation)
            except (FileNotFoundError, DamagedError) as error:
                wrong = wrong or error
                continue
            if wrong is not None:
                _log.warning("%s: %s; the generation before it is read instead", self.name, wrong)
            return
        if wrong is not None:
            raise wrong

    def _load_generation(self, generation: Generation) -> None:
        sums: dict[str, Sum] = dict(generation.sums)
        rows: list[Row] = []
        if generation.index is None or generation.rows is None:
            self._index = Index(flat(self.form), self.form)
        else:
            with files.checked(self._folder / generation.index, sums) as stream:
                self._index = read(stream, self.form, self._effort)
            with files.checked(self._folder / generation.rows, sums) as stream:
                rows = files.read_rows(stream)
        if len(rows) != self._index.count:
            raise FailedPrecondition(
                f"{self.name}: {generation.rows} has {len(rows):,} lines for the {self._index.count:,} rows "
                f"of {generation.index}; each row needs one line, in the same order"
            )
        self._generation = msgspec.structs.replace(generation, sums=sums)
        self._tail = Index(flat(self.form), self.form)
        self._base = len(rows)
        self._documents = [Document(row.id, row.text) for row in rows]
        self._place: dict[Id, int] = {row.id: place for place, row in enumerate(rows)}
        if len(self._place) != len(rows):
            raise FailedPrecondition(f"{self.name}: {generation.rows} has an id twice; give each id once")
        self._dead = {"index": 0, "tail": 0}
        self._ordered = None
        *closed, last = generation.logs
        for name in closed:
            if not (self._folder / name).exists():
                raise FileNotFoundError(errno.ENOENT, "no such file", str(self._folder / name))
            for record, _ in files.read_log(self._folder / name, 0):
                self._apply(record)
        self._log_path, self._end = self._folder / last, 0
        self._log_stamp = None

    def _read_on(self) -> None:
        """What the log says behind what was read of it."""
        try:
            for record, end in files.read_log(self._log_path, self._end):
                self._apply(record)
                self._end = end
        except BaseException:
            self._stamp = None  # half of a record may be in memory
            raise

    def _apply(self, record: Record) -> None:
        if len(record.vectors) != 4 * self.form.dimensions * len(record.rows):
            raise FailedPrecondition(
                f"{self.name}: its log does not hold vectors of the {self.form.dimensions} dimensions that "
                f"{files.CATALOGUE} says; set right what it says"
            )
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
        wanted = np.asarray(places, np.intp)
        old = wanted < self._base
        vectors[old] = self._index.vectors(wanted[old].tolist())
        vectors[~old] = self._tail.vectors((wanted[~old] - self._base).tolist())
        return vectors

    def _search(
        self, index: Index, query: Matrix, k: int, first: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and places of the k nearest rows of an index, whose rows begin at place `first`."""
        near, rows = index.search(query, k)
        kept = [self._counts(place) for place in (rows + first).tolist()]
        return near[kept], (rows + first)[kept]

    def _counts(self, place: int) -> bool:
        """Whether a row is its document's latest."""
        return self._place.get(self._documents[place].id) == place

    # Writing

    def _write(self, record: Record) -> None:
        with self._held():
            log = self._log or self._become_writer()
            try:
                self._end = log.append(record)
                self._apply(record)
            except BaseException:
                # Half of it may be in the log, or in memory. The next call reads again what the disk has.
                self._start_over()
                raise
            if self._tail.count > max(LEAST_COMPACTED, self._base):
                self._compact(log)

    def _become_writer(self) -> files.LogWriter:
        lock = files.lock(self._folder, self.name)
        try:
            self._refresh()
            if not self._catalogue.key:  # the first write into a folder that somebody else made
                catalogue = files.taken_over(self._folder, self._catalogue, self._generation)
                files.write_catalogue(self._folder, catalogue)
                self._refresh()
            files.sweep(self._folder, self._catalogue)
            log = files.LogWriter(self._log_path, self._end)
        except BaseException:
            lock.close()
            raise
        self._lock, self._log = lock, log
        return log

    def _start_over(self) -> None:
        """Be no writer any more, and believe nothing of what is in memory."""
        self._stamp = None
        self._release()

    def _release(self) -> None:
        for held in (self._log, self._lock):
            if held is not None:
                held.close()
        self._log = self._lock = None

    def _compact(self, log: files.LogWriter) -> None:
        """Write index and log as the next generation."""
        try:
            self._write_generation()
            log.close()
            self._stamp = None
            self._refresh()
            self._log = files.LogWriter(self._log_path, self._end)
            files.sweep(self._folder, self._catalogue)
        except BaseException:
            # What the catalogue says by now is for the next write to see: nothing more goes into this log.
            self._start_over()
            raise

    def _write_generation(self) -> None:
        number, key = self._catalogue.generation + 1, self._catalogue.key
        places = sorted(self._place.values())
        index = self._index.with_vectors(self._vectors(places))
        index_name, rows_name = files.index_name(number, key), files.rows_name(number, key)
        with durable.replacing(self._folder / index_name) as stream:
            index.write(stream)
        documents = [self._documents[place] for place in places]
        rows_sum = files.write_rows(
            self._folder / rows_name, [Row(document.id, document.text) for document in documents]
        )
        catalogue = msgspec.structs.replace(
            self._catalogue,
            index=index_name,
            rows=rows_name,
            logs=(files.log_name(number, key),),
            sums={index_name: stream.sum, rows_name: rows_sum},
            generation=number,
            former=self._generation,
        )
        files.write_catalogue(self._folder, catalogue)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _unusable(self.name, error) from None
        except RuntimeError as error:  # FAISS's word for everything
            raise Unavailable(f"{self.name} cannot be used: FAISS says: {last_line(error)}") from None


def effort_of(address: Address) -> Effort:
    """What an address says of how much of an approximate index is searched."""
    options = address.take("nprobe", "ef_search")
    return Effort(**{name: whole(value, f"{address.name}: {name}") for name, value in options.items()})


def _unusable(name: str, error: OSError) -> Unavailable:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    cure = "make room on the disk" if full else "see to the disk"
    return Unavailable(f"{name} cannot be used: {error.strerror or error}; {cure}, and go on")
