"""Checks that every store makes before it writes or searches, and that two stores are not the same place."""

from collections.abc import Hashable
from pathlib import Path

import numpy as np

from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument
from trimtab.stores.base import Form, Matrix, Rows, Store
from trimtab.values.similarity import normalised


def check_rows(store: Store, rows: Rows) -> Matrix:
    """The vectors as they will be written; InvalidArgument names a document that cannot be written."""
    vectors = np.ascontiguousarray(rows.vectors, np.float32)
    wanted = (len(rows), store.form.dimensions)
    if vectors.shape != wanted:
        raise InvalidArgument(
            f"{store.name} takes {len(rows)} vectors of {store.form.dimensions} dimensions for {len(rows)} "
            f"documents, got an array of shape {vectors.shape}"
        )
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        raise InvalidArgument(
            f"the vector of document {rows.documents[first].id!r} holds NaN or infinity, and "
            f"{int(bad.sum())} of {len(rows)} do; {store.name} was not changed. Embed the text again"
        )
    for document in rows.documents:
        if refusal := store.refusal(document):
            raise InvalidArgument(
                f"{store.name} cannot hold document {document.id!r}: {refusal}. It was not changed"
            )
    if len(set(rows.ids)) != len(rows):
        raise InvalidArgument(f"two documents for {store.name} have the same id; give each id once")
    return vectors


def check_query(store: Store, vector: Matrix, k: int) -> Matrix:
    """The query as float32 (d,), normalised for cosine; InvalidArgument if it does not fit the store."""
    query = np.ascontiguousarray(vector, np.float32)
    if query.shape != (store.form.dimensions,):
        raise InvalidArgument(
            f"{store.name} is searched with a vector of {store.form.dimensions} dimensions, "
            f"got an array of shape {query.shape}"
        )
    if not np.isfinite(query).all():
        raise InvalidArgument(f"the query for {store.name} holds NaN or infinity")
    if k < 1:
        raise InvalidArgument(f"k is {k}; ask for at least 1")
    # For cosine, lengths do not matter, and squares of extreme numbers do not fit into float32.
    return normalised(query) if store.form.similarity == "cosine" else query


def check_form(found: Form, wanted: Form, name: str) -> None:
    """FailedPrecondition if an existing store does not have the form that its writer wants."""
    if found.space != wanted.space:
        raise FailedPrecondition(
            f"{name} holds vectors of space {found.space or 'unknown'}, and those of space {wanted.space} "
            "must not be mixed with them; name another store"
        )
    if found != wanted:
        raise FailedPrecondition(
            f"{name} holds {found.dimensions} dimensions compared by {found.similarity}, the vectors have "
            f"{wanted.dimensions} and are compared by {wanted.similarity}; name another store"
        )


def check_apart(source: Store, target: Store) -> None:
    """ConfigError if writing into the target would change the source, whatever their addresses."""
    if source.identity() & target.identity():
        raise ConfigError(
            f"{target.name} and {source.name} are one place, or share a part: what is written into the one "
            "would change the other. Nothing was written; name another store for the new vectors"
        )


def space_of(recorded: object, claimed: str | None, name: str) -> str | None:
    """The space that a store records, or else the one that its address claims."""
    if recorded is None:
        return claimed or None
    if claimed and claimed != recorded:
        raise FailedPrecondition(
            f"{name} is recorded as of space {recorded}, and its address says {claimed}; leave out space="
        )
    return str(recorded)


def files_identity(*paths: Path) -> frozenset[Hashable]:
    """Device and inode of each of these files and folders that exists, following links."""
    found = [path.stat() for path in paths if path.exists()]
    return frozenset(("file", each.st_dev, each.st_ino) for each in found)
