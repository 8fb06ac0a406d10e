"""Qdrant: a collection of a server, or of a folder that the client itself opens.

A point's payload holds its text under `text` (option `text=NAME`). Qdrant's own ids are whole numbers and
UUIDs; any other id becomes a UUID derived from it, and the payload keeps the id under `trimtab_id`, the only
key that is Trimtab's. It is trusted only if the point's UUID is derived from it. All other payload is the
application's: it moves with the document, and writing does not change it. The space is in the collection's
metadata, which needs Qdrant 1.16. For cosine, Qdrant normalises vectors. `ef_search` says how much of its
index is searched. Only one process at a time can open a folder. Further outputs are sparse and multi-vectors
beside the dense one (see qdrant_collection).
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.errors import ConfigError
from trimtab.stores import qdrant_collection as collections
from trimtab.stores import qdrant_points as points
from trimtab.stores.address import Address, whole
from trimtab.stores.base import DENSE, Document, Form, Hit, Matrix, Query, Rows, Store
from trimtab.stores.checks import check_query, check_rows
from trimtab.stores.columns import column
from trimtab.stores.ids import Id
from trimtab.stores.qdrant_connection import QdrantConnection
from trimtab.values.similarity import normalised

OPTIONS = ("text", "vector", "space", "ef_search")
_MOST_POINTS = 100  # points in one upload: a few megabytes at most
_MOST_NUMBERS = 500_000  # numbers of vectors in it, for long multi-vectors: Qdrant takes 32 MB by default


class QdrantStore(Store):
    """A Qdrant collection."""

    keeps_payload = True

    def __init__(self, address: Address, outputs: Mapping[str, Form] | None = None) -> None:
        """The collection at `address`. With `outputs`, it is created if missing."""
        from qdrant_client import models

        options = address.take(*OPTIONS)
        self.name, self._address, self._collection = address.name, address, address.item
        self._models = models
        self._text, using = options.get("text", "text"), options.get("vector")
        if self._text in {points.ID, points.FORMER_ID}:
            raise ConfigError(f"{self.name}: text={self._text} is the payload key of ids; name another")
        self._ef_search: int | None = None
        if "ef_search" in options:
            self._ef_search = whole(options["ef_search"], f"{self.name}: ef_search")
        self._connection = QdrantConnection(address)
        self._client = self._connection.client
        try:
            with self._connection.reaching():
                known = (self._client, self._collection, self.name)
                if outputs is not None and not self._client.collection_exists(self._collection):
                    collections.create(*known, outputs, using)
                described = collections.describe(*known, using, options.get("space"))
        except BaseException:
            self.close()
            raise
        self._vectors, self.beside = described.vectors, described.beside
        (self.output, self.form), *others = described.outputs.items()
        self.others = dict(others)

    def identity(self) -> frozenset[Hashable]:
        with self._connection.reaching():
            aliases = {each.alias_name: each.collection_name for each in self._client.get_aliases().aliases}
            place = self._connection.place()
        return frozenset((part, aliases.get(self._collection, self._collection)) for part in place)

    def count(self) -> int:
        with self._connection.reaching():
            return self._client.count(self._collection, exact=True).count

    def page(self, after: Id | None, size: int) -> list[Document]:
        start = None if after is None else points.point_id(after)
        with self._connection.reaching():
            # The offset itself is returned first, if it still exists.
            found, _ = self._client.scroll(
                self._collection,
                limit=size + 1,
                offset=start,
                with_payload=True,
                with_vectors=False,
            )
        documents = [
            points.document_of(point, self._text) for point in found if start is None or point.id != start
        ]
        return documents[:size]

    def sample(self, count: int) -> list[Id]:
        models = self._models
        with self._connection.reaching():
            found = self._client.query_points(
                self._collection,
                query=models.SampleQuery(sample=models.Sample.RANDOM),
                limit=count,
                with_payload=[points.ID, points.FORMER_ID],
            )
        return [points.document_of(point, self._text).id for point in found.points]

    def get(self, ids: Sequence[Id]) -> Rows:
        found = []
        for point in self._retrieve(ids, vectors=True):
            there = point.vector if isinstance(point.vector, dict) else {"": point.vector}
            kept = {
                name: collections.read(form, there.get(self._vectors[name]))
                for name, form in self.outputs.items()
            }
            if all(kept[name] is not None or form.kind != DENSE for name, form in self.outputs.items()):
                found.append((points.document_of(point, self._text), kept))
        values = {
            name: column(form).assembled([kept[name] for _, kept in found])
            for name, form in self.outputs.items()
        }
        return Rows([document for document, _ in found], values.pop(self.output), values)

    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        models, wanted = self._models, points.points_of(ids)
        if not wanted:
            return {}
        complete = models.Filter(
            must=[
                models.HasIdCondition(has_id=wanted),
                models.HasVectorCondition(has_vector=self._vectors[self.output]),
            ]
        )
        with self._connection.reaching():
            found, _ = self._client.scroll(
                self._collection, complete, limit=len(wanted), with_payload=self._fields()
            )
        documents = [points.document_of(point, self._text) for point in found]
        return {document.id: document.text for document in documents}

    def present(self, ids: Sequence[Id]) -> set[Id]:
        return {
            points.document_of(point, self._text).id for point in self._retrieve(ids, fields=self._fields())
        }

    def payloads(self, ids: Sequence[Id]) -> dict[Id, Mapping[str, Any]]:
        documents = [points.document_of(point, self._text) for point in self._retrieve(ids)]
        return {document.id: document.payload for document in documents}

    def refusal(self, document: Document) -> str:
        if fault := super().refusal(document):
            return fault
        taken = [key for key in (self._text, points.ID) if key in document.payload]
        return (
            f"its payload has a field {taken[0]!r} of its own, where this store keeps the "
            f"{'text; name another: ?text=NAME' if taken[0] == self._text else 'id; rename it'}"
            if taken
            else ""
        )

    def search(self, vector: Matrix, k: int) -> list[Hit]:
        return self.search_output(self.output, vector, k)

    def search_output(self, output: str, query: Query, k: int) -> list[Hit]:
        asked, form = check_query(self, query, k, output), self.outputs[output]
        sparse = form.kind == "sparse"
        if sparse and not len(asked[0]):
            return []
        with self._connection.reaching():
            found = self._nearest(output, asked, k, exact=False)
            # The graph of an index may not reach all of them. Sparse vectors have none, nor has a folder.
            graph = not sparse and self._address.kind == "qdrant-server"
            if graph and len(found) < k and len(found) < self.count():
                found = self._nearest(output, asked, k, exact=True)
        sign = -1.0 if form.similarity in {"euclidean", "manhattan"} else 1.0
        documents = [points.document_of(point, self._text) for point in found]
        return [
            Hit(document.id, document.text, sign * point.score)
            for document, point in zip(documents, found, strict=True)
            if not sparse or point.score > 0
        ]

    def _nearest(self, output: str, asked: Any, k: int, *, exact: bool) -> list[Any]:
        return self._client.query_points(
            self._collection,
            query=collections.written(self.outputs[output], asked),
            using=self._vectors[output] or None,
            limit=k,
            with_payload=self._fields(),
            search_params=self._models.SearchParams(hnsw_ef=self._ef_search, exact=exact),
        ).points

    def upsert(self, rows: Rows) -> None:
        values = check_rows(self, rows)
        for name, form in self.outputs.items():
            if form.kind == DENSE and form.similarity == "cosine":
                # As Qdrant does, except for vectors whose squares overflow there.
                values[name] = normalised(values[name])
        items = {name: column(form).items(values[name]) for name, form in self.outputs.items()}
        part: list[Any] = []
        numbers = 0
        for place, document in enumerate(rows.documents):
            of_one = {name: each[place] for name, each in items.items()}
            more = sum(np.size(each[1] if isinstance(each, tuple) else each) for each in of_one.values())
            if part and (len(part) == _MOST_POINTS or numbers + more > _MOST_NUMBERS):
                self._write(part)
                part, numbers = [], 0
            part.append(self._point(document, of_one))
            numbers += more
        self._write(part)

    def carry(self, documents: Sequence[Document]) -> None:
        for start in range(0, len(documents), _MOST_POINTS):
            operations = [
                points.carrying(points.point_id(document.id), dict(document.payload))
                for document in documents[start : start + _MOST_POINTS]
                if document.payload
            ]
            if operations:
                with self._connection.reaching():
                    self._client.batch_update_points(self._collection, operations, wait=True)

    def delete(self, ids: Collection[Id]) -> None:
        wanted = points.points_of(ids)
        if wanted:
            with self._connection.reaching():
                self._client.delete(self._collection, self._models.PointIdsList(points=wanted), wait=True)

    def close(self) -> None:
        self._connection.close()

    def _fields(self) -> list[str]:
        return [self._text, points.ID, points.FORMER_ID]

    def _retrieve(
        self, ids: Sequence[Id], *, vectors: bool = False, fields: list[str] | None = None
    ) -> list[Any]:
        """The existing points of these ids, in their order."""
        wanted = points.points_of(ids)
        if not wanted:
            return []
        # By name, or all: a single one has no name.
        asked: Any = vectors and ("" in self._vectors.values() or list(self._vectors.values()))
        with self._connection.reaching():
            there = self._client.retrieve(
                self._collection, wanted, with_payload=fields or True, with_vectors=asked
            )
        found = {point.id: point for point in there}
        return [found[id] for id in wanted if id in found]

    def _point(self, document: Document, items: Mapping[str, Any]) -> Any:
        named = {
            self._vectors[name]: collections.written(form, items[name]) for name, form in self.outputs.items()
        }
        return self._models.PointStruct(
            id=points.point_id(document.id),
            vector=named.get("", named),
            payload=points.payload_of(document, self._text),
        )

    def _write(self, made: Sequence[Any]) -> None:
        """Write points. Existing points keep their other vectors and payload."""
        if not made:
            return
        with self._connection.reaching():
            there = self._client.retrieve(
                self._collection, [point.id for point in made], with_payload=False, with_vectors=False
            )
            operations = points.operations(made, {point.id for point in there}, self._text)
            self._client.batch_update_points(self._collection, operations, wait=True)
