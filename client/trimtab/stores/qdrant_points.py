"""Converts documents to Qdrant's points and back; and what is written of an existing point."""

import uuid
from collections.abc import Collection, Sequence
from typing import Any

from trimtab.stores.base import Document
from trimtab.stores.ids import Id, id_fault

# The only payload key that is Trimtab's: the id from which the point's UUID was derived.
ID = "trimtab_id"
FORMER_ID = "_id"  # in collections of earlier versions
_LARGEST = 2**64


def point_id(id: Id) -> int | str:
    """The id for Qdrant: integers and UUIDs as they are; for any other id, a UUID derived from it."""
    if isinstance(id, int):
        return id if 0 <= id < _LARGEST else str(uuid.uuid5(uuid.NAMESPACE_OID, f"int:{id}"))
    try:
        if str(uuid.UUID(id)) == id:
            return id
    except ValueError:
        pass
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"str:{id}"))


def points_of(ids: Collection[Id]) -> list[Any]:
    """The points of these ids, without invalid ones."""
    return [point_id(id) for id in ids if not id_fault(id)]


def _made_from(id: object, point: int | str) -> bool:
    """Whether a point's UUID is derived from this id, which does not happen by chance."""
    return isinstance(id, int | str) and not id_fault(id) and id != point and point_id(id) == point


def document_of(point: Any, text_key: str) -> Document:
    """A point as a document; all payload except the text and our id is the application's."""
    payload = dict(point.payload or {})
    id = point.id
    for key in (ID, FORMER_ID):
        if _made_from(payload.get(key), point.id):
            id = payload.pop(key)
    text = payload.pop(text_key, None)
    return Document(id, text if isinstance(text, str) else None, payload)


def payload_of(document: Document, text_key: str) -> dict[str, Any]:
    """The payload of a document: its own, with the text and, if Qdrant cannot take the id, the id."""
    payload = dict(document.payload)
    if document.text is not None:
        payload[text_key] = document.text
    if point_id(document.id) != document.id:
        payload[ID] = document.id
    return payload


def operations(points: Sequence[Any], known: Collection[Any], text_key: str) -> list[Any]:
    """The operations that write these points. Points in `known` keep their other vectors and payload."""
    from qdrant_client import models

    fresh = [point for point in points if point.id not in known]
    old = [point for point in points if point.id in known]
    found: list[Any] = []
    if fresh:
        found.append(models.UpsertOperation(upsert=models.PointsList(points=fresh)))
    if old:
        # The vector first: if a text is there, its vector must be, too.
        changed: list[Any] = [models.PointVectors(id=each.id, vector=each.vector) for each in old]
        found.append(models.UpdateVectorsOperation(update_vectors=models.UpdateVectors(points=changed)))
    found += [carrying(each.id, each.payload) for each in old if each.payload]
    if bare := [each.id for each in old if text_key not in (each.payload or {})]:
        gone = models.DeletePayload(keys=[text_key], points=bare)
        found.append(models.DeletePayloadOperation(delete_payload=gone))
    return found


def carrying(id: Any, payload: dict[str, Any]) -> Any:
    """The operation that writes these fields of a point's payload, and leaves the others."""
    from qdrant_client import models

    return models.SetPayloadOperation(set_payload=models.SetPayload(payload=payload, points=[id]))
