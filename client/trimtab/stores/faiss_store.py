"""FAISS in a folder, with what FAISS itself lacks: ids, texts, the space, and durable writes.

The whole folder is read into memory. One process writes at a time; others may read, and each call sees what
was written before it. Writes go to a log in the folder (see trimtab.stores.folder), which is searched
exactly, beside the index. When the log has more rows than the index, and when the store is closed, both are
merged into a new index of the same kind.
"""

import errno
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import IO

import msgspec
import numpy as np

from trimtab import forks
from trimtab.artifacts import durable
from trimtab.errors import InvalidArgument, NotFound, Unavailable
from trimtab.stores import folder as files
from trimtab.stores.address import Address, whole
from trimtab.stores.base import Document, Form, Hit, Matrix, Rows, Store
from trimtab.stores.checks import check_query, check_rows, files_identity
from trimtab.stores.faiss_contents import newest
from trimtab.stores.faiss_index import LEFT_TO_THE_INDEX, Effort, last_line
from trimtab.stores.faiss_log import LogWriter, Record, Row
from trimtab.stores.ids import Id
from trimtab.values.similarity import normalised

MOST_AT_ONCE = 1 << 30  # bytes of one write, which becomes one record
_TRIES = 10


class FaissStore(Store):
    """A folder with a FAISS index."""

    def __init__(self, folder: Path, name: str, effort: Effort = LEFT_TO_THE_INDEX) -> None:
        self.name, self._folder, self._effort = name, folder, effort
        self._guard, self._process = RLock(), forks.generation()
        self._lock: IO[bytes] | None = None  # while this process is the writer
        self._log: LogWriter | None = None
        self._stamp: files.Stamp | None = None  # of the catalogue that was read
        self._log_stamp: files.Stamp | None = None
        with self._reaching():
            self._refresh()

    @classmethod
    def create(cls, folder: Path, name: str, form: Form, effort: Effort = LEFT_TO_THE_INDEX) -> "FaissStore":
        """The store in `folder`, created with this form if there is none.

        FailedPrecondition if there is none, but files with such names exist.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / files.CATALOGUE).exists():
                files.check_vacant(folder, name)
                with files.lock(folder, name):
                    if not (folder / files.CATALOGUE).exists():  # again: another process may have made it
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
            return len(self._contents)

    def page(self, after: Id | None, size: int) -> list[Document]:
        with self._current():
            return self._contents.page(after, size)

    def sample(self, count: int) -> list[Id]:
        with self._current():
            ids = self._contents.ids()
        chosen = np.random.default_rng().permutation(len(ids))[:count]
        return [ids[place] for place in chosen]

    def get(self, ids: Sequence[Id]) -> Rows:
        with self._current():
            return self._contents.rows(ids)

    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        with self._current():
            return self._contents.texts(ids)

    def search(self, vector: Matrix, k: int) -> list[Hit]:
        query = check_query(self, vector, k)
        with self._current():
            return self._contents.search(query, k)

    def upsert(self, rows: Rows) -> None:
        vectors: Matrix = check_rows(self, rows)[self.output]
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
            present = [id for id in ids if id in self._contents]
        if present:
            self._write(Record(deleted=present))

    def close(self) -> None:
        """Close the store. If this process has written, the log becomes part of the index."""
        with self._held():
            try:
                if self._log is not None and self._contents.end:
                    self._compact(self._log)
            finally:
                self._release()

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The store with everything written before this call, by any process."""
        with self._held():
            if self._lock is None:
                self._refresh()
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The store, locked for this thread."""
        if self._process != forks.generation():
            # After a fork the parent is still the writer; its threads do not exist here to release the lock.
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
                    self._load()
                    self._stamp = stamp
                log_stamp = files.stamp(self._contents.log)
                if log_stamp != self._log_stamp:
                    self._read_on()
                    self._log_stamp = log_stamp
                if files.stamp(path) == stamp:  # otherwise a writer began a new generation meanwhile
                    return
            except FileNotFoundError as error:
                missing = error
        if missing is not None:
            raise NotFound(f"{self.name} is no store: {missing.filename} is missing")
        raise Unavailable(f"{self.name} is rewritten faster than it can be read; try again")

    def _load(self) -> None:
        self._catalogue = files.read_catalogue(self._folder)
        self._contents = newest(self._folder, self.name, self._catalogue, self._effort)
        self.form = self._contents.form
        self._log_stamp = None

    def _read_on(self) -> None:
        try:
            self._contents.read_on()
        except BaseException:
            self._stamp = None  # a record may be half applied
            raise

    # Writing

    def _write(self, record: Record) -> None:
        with self._held():
            log = self._log or self._become_writer()
            try:
                self._contents.end = log.append(record)
                self._contents.apply(record)
            except BaseException:
                # It may be half written or half applied. The next call reads from the disk again.
                self._start_over()
                raise
            if self._contents.grown:
                self._compact(log)

    def _become_writer(self) -> LogWriter:
        lock = files.lock(self._folder, self.name)
        try:
            self._refresh()
            if not self._catalogue.key:  # the first write into a folder that somebody else made
                generation = self._contents.generation
                files.write_catalogue(
                    self._folder, files.taken_over(self._folder, self._catalogue, generation)
                )
                self._refresh()
            files.sweep(self._folder, self._catalogue)
            log = LogWriter(self._contents.log, self._contents.end)
        except BaseException:
            lock.close()
            raise
        self._lock, self._log = lock, log
        return log

    def _start_over(self) -> None:
        """Stop being the writer, and discard what is in memory."""
        self._stamp = None
        self._release()

    def _release(self) -> None:
        for held in (self._log, self._lock):
            if held is not None:
                held.close()
        self._log = self._lock = None

    def _compact(self, log: LogWriter) -> None:
        """Write index and log as the next generation."""
        try:
            self._write_generation()
            log.close()
            self._stamp = None
            self._refresh()
            self._log = LogWriter(self._contents.log, self._contents.end)
            files.sweep(self._folder, self._catalogue)
        except BaseException:
            # The catalogue may have changed already: nothing more may go into this log.
            self._start_over()
            raise

    def _write_generation(self) -> None:
        number, key = self._catalogue.generation + 1, self._catalogue.key
        rows = self._contents.all_rows()
        index = self._contents.index_of(rows.vectors)
        index_name, rows_name = files.index_name(number, key), files.rows_name(number, key)
        with durable.replacing(self._folder / index_name) as stream:
            index.write(stream)
        written = [Row(document.id, document.text) for document in rows.documents]
        rows_sum = files.write_rows(self._folder / rows_name, written)
        catalogue = msgspec.structs.replace(
            self._catalogue,
            index=index_name,
            rows=rows_name,
            logs=(files.log_name(number, key),),
            sums={index_name: stream.sum, rows_name: rows_sum},
            generation=number,
            former=self._contents.generation,
        )
        files.write_catalogue(self._folder, catalogue)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _unusable(self.name, error) from None
        except RuntimeError as error:  # FAISS raises nothing else
            raise Unavailable(f"{self.name} cannot be used: FAISS says: {last_line(error)}") from None


def effort_of(address: Address) -> Effort:
    """How much of an approximate index is searched, according to an address."""
    options = address.take("nprobe", "ef_search")
    return Effort(**{name: whole(value, f"{address.name}: {name}") for name, value in options.items()})


def _unusable(name: str, error: OSError) -> Unavailable:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    cure = "make room on the disk" if full else "check the disk"
    return Unavailable(f"{name} cannot be used: {error.strerror or error}; {cure}, and try again")
