"""The contents of a FAISS store in memory: a generation's index, followed by the rows of its logs.

A document that is written again gets a later place; its earlier row is ignored.
"""

import errno
import logging
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.durable import Sum
from trimtab.errors import DamagedError, FailedPrecondition
from trimtab.stores import folder as files
from trimtab.stores.base import Document, Form, Hit, Matrix, Rows
from trimtab.stores.faiss_index import Effort, FaissIndex, flat, read
from trimtab.stores.faiss_log import Record, Row, read_log
from trimtab.stores.folder import Catalogue, Generation
from trimtab.stores.ids import Id, order
from trimtab.values.similarity import best

_log = logging.getLogger(__name__)
LEAST_COMPACTED = 1024  # rows in the logs before it is worth rewriting the index


class Contents:
    """One generation, read from its files, and its last log as far as `read_on` has read it.

    generation: includes the checksums of its files. log: the path of that log. end: how far it was read.
    """

    def __init__(self, folder: Path, name: str, form: Form, generation: Generation, effort: Effort) -> None:
        self.name, self.form = name, form
        sums: dict[str, Sum] = dict(generation.sums)
        rows: list[Row] = []
        if generation.index is None or generation.rows is None:
            self._index = FaissIndex(flat(form), form)
        else:
            with files.checked(folder / generation.index, sums) as stream:
                self._index = read(stream, form, effort)
            with files.checked(folder / generation.rows, sums) as stream:
                rows = files.read_rows(stream)
        if len(rows) != self._index.count:
            raise FailedPrecondition(
                f"{name}: {generation.rows} has {len(rows):,} lines for the {self._index.count:,} rows "
                f"of {generation.index}; each row needs one line, in the same order"
            )
        self.generation = msgspec.structs.replace(generation, sums=sums)
        self._tail = FaissIndex(flat(form), form)
        self._base = len(rows)
        self._documents = [Document(row.id, row.text) for row in rows]
        self._place: dict[Id, int] = {row.id: place for place, row in enumerate(rows)}
        if len(self._place) != len(rows):
            raise FailedPrecondition(f"{name}: {generation.rows} has an id twice; give each id once")
        self._dead = {"index": 0, "tail": 0}
        self._ordered: list[Id] | None = None  # all ids in order, computed when needed
        *closed, last = generation.logs
        for log in closed:
            if not (folder / log).exists():
                raise FileNotFoundError(errno.ENOENT, "no such file", str(folder / log))
            for record, _ in read_log(folder / log, 0):
                self.apply(record)
        self.log, self.end = folder / last, 0

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, id: Id) -> bool:
        return id in self._place

    @property
    def grown(self) -> bool:
        """Whether the logs have more rows than the index, and enough to justify a new one."""
        return self._tail.count > max(LEAST_COMPACTED, self._base)

    def ids(self) -> list[Id]:
        """All ids."""
        return list(self._place)

    def page(self, after: Id | None, size: int) -> list[Document]:
        """The next documents after an id, in the order of ids."""
        if self._ordered is None:
            self._ordered = sorted(self._place, key=order)
        start = 0 if after is None else bisect_right(self._ordered, order(after), key=order)
        return [self._documents[self._place[id]] for id in self._ordered[start : start + size]]

    def rows(self, ids: Iterable[Id]) -> Rows:
        """The documents with these ids that exist, with their vectors."""
        return self._rows([self._place[id] for id in ids if id in self._place])

    def all_rows(self) -> Rows:
        """All documents, in the order of writing."""
        return self._rows(sorted(self._place.values()))

    def texts(self, ids: Iterable[Id]) -> dict[Id, str | None]:
        """The texts of these documents, for those that exist."""
        return {id: self._documents[self._place[id]].text for id in ids if id in self._place}

    def search(self, query: Matrix, k: int) -> list[Hit]:
        """The k nearest documents, best first."""
        halves = [
            self._search(self._index, query, k + self._dead["index"], 0),
            self._search(self._tail, query, k + self._dead["tail"], self._base),
        ]
        near, places = (np.concatenate(part) for part in zip(*halves, strict=True))
        found = [(self._documents[places[at]], float(near[at])) for at in best(near, k)]
        return [Hit(document.id, document.text, score) for document, score in found]

    def read_on(self) -> None:
        """Apply the records of the log that have not been read yet."""
        for record, end in read_log(self.log, self.end):
            self.apply(record)
            self.end = end

    def apply(self, record: Record) -> None:
        """Apply one record."""
        if len(record.vectors) != 4 * self.form.dimensions * len(record.rows):
            raise FailedPrecondition(
                f"{self.name}: its log does not hold vectors of the {self.form.dimensions} dimensions that "
                f"{files.CATALOGUE} says; correct what it says"
            )
        for id in record.deleted:
            self._forget(id)
        for row in record.rows:
            self._forget(row.id)
            self._place[row.id] = len(self._documents)
            self._documents.append(Document(row.id, row.text))
        self._tail.add(np.frombuffer(record.vectors, "<f4").reshape(-1, self.form.dimensions))

    def index_of(self, vectors: Matrix) -> FaissIndex:
        """An index of these vectors, of the same kind as the generation's."""
        return self._index.with_vectors(vectors)

    def _rows(self, places: Sequence[int]) -> Rows:
        vectors = np.empty((len(places), self.form.dimensions), np.float32)
        wanted = np.asarray(places, np.intp)
        old = wanted < self._base
        vectors[old] = self._index.vectors(wanted[old].tolist())
        vectors[~old] = self._tail.vectors((wanted[~old] - self._base).tolist())
        return Rows([self._documents[place] for place in places], vectors)

    def _forget(self, id: Id) -> None:
        self._ordered = None
        place = self._place.pop(id, None)
        if place is not None:
            self._dead["index" if place < self._base else "tail"] += 1

    def _search(
        self, index: FaissIndex, query: Matrix, k: int, first: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and places of the k nearest rows of an index. Its rows begin at place `first`."""
        near, rows = index.search(query, k)
        kept = [self._counts(place) for place in (rows + first).tolist()]
        return near[kept], (rows + first)[kept]

    def _counts(self, place: int) -> bool:
        """Whether a row is its document's latest."""
        return self._place.get(self._documents[place].id) == place


def newest(folder: Path, name: str, catalogue: Catalogue, effort: Effort) -> Contents:
    """The newest undamaged generation, without its last log."""
    form = Form(space=catalogue.space, dimensions=catalogue.dimensions, similarity=catalogue.similarity)
    wrong: FileNotFoundError | DamagedError | None = None
    for generation in catalogue.generations:
        try:
            contents = Contents(folder, name, form, generation, effort)
        except (FileNotFoundError, DamagedError) as error:
            wrong = wrong or error
            continue
        if wrong is not None:
            _log.warning("%s: %s; the generation before it is read instead", name, wrong)
        return contents
    raise wrong or FileNotFoundError(errno.ENOENT, "no generation", str(folder))
