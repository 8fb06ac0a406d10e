"""Qdrant: a collection of a server, or of a folder that the client itself opens.

A point's payload holds its text under `text` (option `text=NAME`). Qdrant's own ids are whole numbers and
UUIDs; any other id becomes a UUID made from it, and the payload keeps the id under `_id`. The space stands
in the collection's metadata, which servers know from 1.16 on. Qdrant keeps vectors at length 1 where they
are compared by cosine. `ef_search` says how far its index is searched. One process at a time can open a
folder.
"""

import os
import socket
import sqlite3
import uuid
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from trimtab.bundle import Similarity
from trimtab.errors import ConfigError, FailedPrecondition, NotFound, Unavailable
from trimtab.stores.address import KEY_VARIABLE, Address, whole
from trimtab.stores.base import (
    Document,
    Form,
    Hit,
    Id,
    Matrix,
    Rows,
    Store,
    check_query,
    check_rows,
    files_identity,
    space_of,
)

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

OPTIONS = ("text", "vector", "space", "ef_search")
_SPACE = "trimtab_space"
_ID = "_id"
_LARGEST = 2**64
_PORT = 6333  # where an address names none
_MOST_POINTS = 100  # points in one upload: a few megabytes at most
_DISTANCES: dict[str, Similarity] = {
    "Cosine": "cosine",
    "Dot": "dot",
    "Euclid": "euclidean",
    "Manhattan": "manhattan",
}


class QdrantStore(Store):
    """A Qdrant collection."""

    def __init__(self, address: Address, form: Form | None = None) -> None:
        from qdrant_client import models

        options = address.take(*OPTIONS)
        self.name, self._address, self._collection = address.name, address, address.item
        self._models = models
        self._text, self._using = options.get("text", "text"), options.get("vector")
        self._ef_search: int | None = None
        if "ef_search" in options:
            self._ef_search = whole(options["ef_search"], f"{self.name}: ef_search")
        # The embedded client is not made for threads; a server's is, and waiting in turn costs it little.
        self._guard = RLock()
        self._client: QdrantClient = _connect(address)
        try:
            with self._reaching():
                if form is not None and not self._client.collection_exists(self._collection):
                    self._create(form)
                self.form = self._describe(options.get("space"))
        except BaseException:
            self.close()
            raise

    def identity(self) -> frozenset[Hashable]:
        with self._reaching():
            aliases = {each.alias_name: each.collection_name for each in self._client.get_aliases().aliases}
            place = self._place()
        return frozenset((part, aliases.get(self._collection, self._collection)) for part in place)

    def count(self) -> int:
        with self._reaching():
            return self._client.count(self._collection, exact=True).count

    def page(self, after: Id | None, size: int) -> list[Document]:
        start = None if after is None else point_id(after)
        with self._reaching():
            # The offset is the first that is given, where it is still there.
            points, _ = self._client.scroll(
                self._collection,
                limit=size + 1,
                offset=start,
                with_payload=self._fields(),
                with_vectors=False,
            )
        documents = [self._document(point) for point in points if start is None or point.id != start]
        return documents[:size]

    def sample(self, count: int) -> list[Id]:
        models = self._models
        with self._reaching():
            found = self._client.query_points(
                self._collection,
                query=models.SampleQuery(sample=models.Sample.RANDOM),
                limit=count,
                with_payload=[_ID],
            )
        return [self._document(point).id for point in found.points]

    def get(self, ids: Sequence[Id]) -> Rows:
        points = self._retrieve(ids, vectors=True)
        vectors = np.empty((len(points), self.form.dimensions), np.float32)
        for row, point in enumerate(points):
            vectors[row] = point.vector[self._using] if self._using is not None else point.vector
        return Rows([self._document(point) for point in points], vectors)

    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        documents = [self._document(point) for point in self._retrieve(ids, vectors=False)]
        return {document.id: document.text for document in documents}

    def search(self, vector: Matrix, k: int) -> list[Hit]:
        query = check_query(self, vector, k)
        with self._reaching():
            found = self._nearest(query, k, exact=False)
            if len(found) < k and len(found) < self.count():  # the graph of an index did not reach all
                found = self._nearest(query, k, exact=True)
        sign = -1.0 if self.form.similarity in {"euclidean", "manhattan"} else 1.0
        documents = [self._document(point) for point in found]
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
        points = [
            self._point(document, vector.tolist())
            for document, vector in zip(rows.documents, vectors, strict=True)
        ]
        with self._reaching():
            for start in range(0, len(points), _MOST_POINTS):
                self._client.upsert(self._collection, points[start : start + _MOST_POINTS], wait=True)

    def delete(self, ids: Collection[Id]) -> None:
        if ids:
            points: list[Any] = [point_id(id) for id in ids]
            with self._reaching():
                self._client.delete(self._collection, self._models.PointIdsList(points=points), wait=True)

    def close(self) -> None:
        with self._guard:
            self._client.close()

    def _place(self) -> frozenset[Hashable]:
        """The folder, or the server: by what it says of itself, or by its addresses where it says nothing."""
        from qdrant_client.http.exceptions import ApiException

        if self._address.kind == "qdrant":
            return files_identity(Path(self._address.location))
        try:
            told: Any = self._client.http.service_api.telemetry(details_level=0).result
            peers = getattr(self._client.cluster_status(), "peers", {})
            return frozenset([("qdrant", told.id), *(("qdrant-peer", peer) for peer in peers)])
        except ApiException:  # a key for one collection may not ask
            url = urlsplit(self._address.location)
            found = socket.getaddrinfo(url.hostname, url.port or _PORT, type=socket.SOCK_STREAM)
            return frozenset(("address", each[4][0], each[4][1]) for each in found)

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
        parameters: Any = self._client.get_collection(self._collection).config.params.vectors
        if isinstance(parameters, dict):
            if self._using not in parameters:
                names = ", ".join(sorted(parameters)) or "none"
                raise ConfigError(
                    f"{self.name} has named vectors ({names}); say which: #{self._collection}?vector=NAME"
                )
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
        return [self._text, _ID]

    def _retrieve(self, ids: Sequence[Id], *, vectors: bool) -> list[Any]:
        """The points of those of these ids that are there, in the order of `ids`."""
        wanted: list[Any] = [point_id(id) for id in ids]
        if not wanted:
            return []
        asked: Any = vectors if self._using is None or not vectors else [self._using]
        with self._reaching():
            points = self._client.retrieve(
                self._collection, wanted, with_payload=self._fields(), with_vectors=asked
            )
        found = {point.id: point for point in points}
        return [found[id] for id in wanted if id in found]

    def _document(self, point: Any) -> Document:
        payload = point.payload or {}
        text = payload.get(self._text)
        return Document(payload.get(_ID, point.id), text if isinstance(text, str) else None)

    def _point(self, document: Document, vector: list[float]) -> Any:
        id = point_id(document.id)
        payload: dict[str, Any] = {} if document.text is None else {self._text: document.text}
        if id != document.id:
            payload[_ID] = document.id
        named: Any = vector if self._using is None else {self._using: vector}
        return self._models.PointStruct(id=id, vector=named, payload=payload)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        from qdrant_client.http.exceptions import ApiException

        with self._guard:
            try:
                yield
            except sqlite3.Error as error:  # in which the embedded client keeps its points
                raise Unavailable(
                    f"{self.name} cannot be used: {self._address.scrub(error)[:400]}; see to the disk and "
                    "its room, and go on"
                ) from None
            except (ApiException, OSError, ValueError, RuntimeError) as error:
                raise Unavailable(
                    f"{self.name} does not answer as it should: {self._address.scrub(error)[:400]}"
                ) from None


def point_id(id: Id) -> int | str:
    """The id that Qdrant takes: whole numbers and UUIDs as they are, a UUID made from any other."""
    if isinstance(id, int):
        return id if 0 <= id < _LARGEST else str(uuid.uuid5(uuid.NAMESPACE_OID, f"int:{id}"))
    try:
        if str(uuid.UUID(id)) == id:
            return id
    except ValueError:
        pass
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"str:{id}"))


def _connect(address: Address) -> "QdrantClient":
    from qdrant_client import QdrantClient

    if address.kind == "qdrant-server":
        return QdrantClient(
            url=address.location,
            api_key=os.environ.get(KEY_VARIABLE),
            check_compatibility=False,
            timeout=60,
        )
    if not Path(address.location).parent.is_dir():
        raise NotFound(f"{address.name}: the folder above it does not exist")
    folder = Path(address.location)
    described = folder / "meta.json"
    if described.exists() and not described.stat().st_size and not (folder / "collection").exists():
        described.unlink()  # the client was stopped between making it and writing the first word
    try:
        return QdrantClient(path=address.location, force_disable_check_same_thread=True)
    except OSError as error:
        raise Unavailable(f"{address.name} cannot be used: {error.strerror}; see to the disk") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{described} is not what Qdrant writes into a folder of its own; name another folder"
        ) from None
    except sqlite3.Error as error:
        raise Unavailable(
            f"{address.name} cannot be opened: {address.scrub(error)[:400]}; see to the disk and its room, "
            "and go on"
        ) from None
    except RuntimeError:
        raise FailedPrecondition(
            f"{address.name} is open already, in this process or in another, and Qdrant in a folder serves "
            "one at a time; close that one, or run a Qdrant server"
        ) from None
