"""Qdrant: a collection of a server, or of a folder that the client itself opens.

A point's payload holds its text under `text` (option `text=NAME`). Qdrant's own ids are whole numbers and
UUIDs; any other id becomes a UUID derived from it, and the payload keeps the id under `trimtab_id`, the only
key that is Trimtab's. It is trusted only if the point's UUID is derived from it. All other payload is the
application's: it moves with the document, and writing does not change it. The space is in the collection's
metadata, which needs Qdrant 1.16. For cosine, Qdrant normalises vectors. `ef_search` says how much of its
index is searched. Only one process at a time can open a folder.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.errors import ConfigError, FailedPrecondition, NotFound
from trimtab.kinds import Similarity
from trimtab.stores import qdrant_points as points
from trimtab.stores.address import Address, whole
from trimtab.stores.base import Document, Form, Hit, Matrix, Rows, Store
from trimtab.stores.checks import check_query, check_rows, space_of
from trimtab.stores.ids import Id
from trimtab.stores.qdrant_connection import QdrantConnection
from trimtab.values.similarity import normalised

OPTIONS = ("text", "vector", "space", "ef_search")
_SPACE = "trimtab_space"
_MOST_POINTS = 100  # points in one upload: a few megabytes at most
_DISTANCES: dict[str, Similarity] = {
    "Cosine": "cosine",
    "Dot": "dot",
    "Euclid": "euclidean",
    "Manhattan": "manhattan",
}


class QdrantStore(Store):
    """A Qdrant collection."""

    keeps_payload = True

    def __init__(self, address: Address, form: Form | None = None) -> None:
        from qdrant_client import models

        options = address.take(*OPTIONS)
        self.name, self._address, self._collection = address.name, address, address.item
        self._models = models
        self._text, self._using = options.get("text", "text"), options.get("vector")
        if self._text in {points.ID, points.FORMER_ID}:
            raise ConfigError(f"{self.name}: text={self._text} is the payload key of ids; name another")
        self._ef_search: int | None = None
        if "ef_search" in options:
            self._ef_search = whole(options["ef_search"], f"{self.name}: ef_search")
        self._connection = QdrantConnection(address)
        self._client = self._connection.client
        try:
            with self._connection.reaching():
                if form is not None and not self._client.collection_exists(self._collection):
                    self._create(form)
                self.form = self._describe(options.get("space"))
        except BaseException:
            self.close()
            raise

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
        found = [(point, self._vector(point)) for point in self._retrieve(ids, vectors=True)]
        found = [(point, vector) for point, vector in found if vector is not None]
        vectors = np.empty((len(found), self.form.dimensions), np.float32)
        for row, (_, vector) in enumerate(found):
            vectors[row] = vector
        return Rows([points.document_of(point, self._text) for point, _ in found], vectors)

    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        models, wanted = self._models, points.points_of(ids)
        if not wanted:
            return {}
        complete = models.Filter(
            must=[
                models.HasIdCondition(has_id=wanted),
                models.HasVectorCondition(has_vector=self._using or ""),
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
        query = check_query(self, vector, k)
        with self._connection.reaching():
            found = self._nearest(query, k, exact=False)
            if len(found) < k and len(found) < self.count():  # the graph of an index did not reach them
                found = self._nearest(query, k, exact=True)
        sign = -1.0 if self.form.similarity in {"euclidean", "manhattan"} else 1.0
        documents = [points.document_of(point, self._text) for point in found]
        return [
            Hit(document.id, document.text, sign * point.score)
            for document, point in zip(documents, found, strict=True)
        ]

    def _nearest(self, query: Matrix, k: int, *, exact: bool) -> list[Any]:
        return self._client.query_points(
            self._collection,
            query=query.tolist(),
            using=self._using,
            limit=k,
            with_payload=self._fields(),
            search_params=self._models.SearchParams(hnsw_ef=self._ef_search, exact=exact),
        ).points

    def upsert(self, rows: Rows) -> None:
        vectors = check_rows(self, rows)
        if (
            self.form.similarity == "cosine"
        ):  # as Qdrant does, except for vectors whose squares overflow there
            vectors = normalised(vectors)
        for start in range(0, len(rows), _MOST_POINTS):
            part = slice(start, start + _MOST_POINTS)
            self._write(rows.documents[part], vectors[part])

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

    def _create(self, form: Form) -> None:
        models = self._models
        distance = next(name for name, similarity in _DISTANCES.items() if similarity == form.similarity)
        parameters = models.VectorParams(size=form.dimensions, distance=models.Distance(distance))
        self._client.create_collection(
            self._collection,
            vectors_config=parameters if self._using is None else {self._using: parameters},
            metadata={_SPACE: form.space},
        )
        if self._metadata().get(_SPACE) != form.space:
            self._client.delete_collection(self._collection)
            raise FailedPrecondition(
                f"{self.name}: this Qdrant keeps no metadata of a collection, and so cannot name the space "
                "of its vectors; use 1.16 or later"
            )

    def _metadata(self) -> dict[str, Any]:
        return self._client.get_collection(self._collection).config.metadata or {}

    def _describe(self, claimed: str | None) -> Form:
        if not self._client.collection_exists(self._collection):
            raise NotFound(f"{self.name} does not exist")
        collection = self._client.get_collection(self._collection)
        parameters: Any = collection.config.params.vectors
        sparse = collection.config.params.sparse_vectors or {}
        indexes = [f"the payload index on {key}" for key in sorted(collection.payload_schema)]
        self.beside = [*sorted(sparse), *indexes]
        if isinstance(parameters, dict):
            if self._using not in parameters:
                names = ", ".join(sorted(parameters)) or "none"
                raise ConfigError(
                    f"{self.name} has named vectors ({names}); say which: #{self._collection}?vector=NAME"
                )
            self.beside = [*(name for name in parameters if name != self._using), *self.beside]
            parameters = parameters[self._using]
        elif self._using is not None:
            raise ConfigError(f"{self.name} has no named vectors; leave out vector={self._using}")
        if parameters.multivector_config is not None or parameters.datatype == self._models.Datatype.UINT8:
            raise ConfigError(
                f"{self.name} keeps several vectors a point, or vectors of whole numbers (uint8); "
                "Trimtab needs one vector of floats a document"
            )
        return Form(
            space=space_of(self._metadata().get(_SPACE), claimed, self.name),
            dimensions=parameters.size,
            similarity=_DISTANCES[parameters.distance.value],
        )

    def _fields(self) -> list[str]:
        return [self._text, points.ID, points.FORMER_ID]

    def _retrieve(
        self, ids: Sequence[Id], *, vectors: bool = False, fields: list[str] | None = None
    ) -> list[Any]:
        """The existing points of these ids, in their order."""
        wanted = points.points_of(ids)
        if not wanted:
            return []
        asked: Any = vectors if self._using is None or not vectors else [self._using]
        with self._connection.reaching():
            there = self._client.retrieve(
                self._collection, wanted, with_payload=fields or True, with_vectors=asked
            )
        found = {point.id: point for point in there}
        return [found[id] for id in wanted if id in found]

    def _vector(self, point: Any) -> list[float] | None:
        """The vector of a point; None if it was written without."""
        found = point.vector
        if self._using is not None:
            found = (found or {}).get(self._using)
        return found or None

    def _write(self, documents: Sequence[Document], vectors: Matrix) -> None:
        """Write points. Existing points keep their other vectors and payload."""
        made = [
            self._models.PointStruct(
                id=points.point_id(document.id),
                vector=self._named(vector),
                payload=points.payload_of(document, self._text),
            )
            for document, vector in zip(documents, vectors.tolist(), strict=True)
        ]
        with self._connection.reaching():
            there = self._client.retrieve(
                self._collection, [point.id for point in made], with_payload=False, with_vectors=False
            )
            operations = points.operations(made, {point.id for point in there}, self._text)
            if operations:
                self._client.batch_update_points(self._collection, operations, wait=True)

    def _named(self, vector: list[float]) -> Any:
        return vector if self._using is None else {self._using: vector}
