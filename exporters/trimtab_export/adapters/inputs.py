"""The inputs of a fit: texts, queries and pairs in files, and the old index's vectors."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab import stores
from trimtab.commands.texts import open_texts
from trimtab.errors import AdapterError, ConfigError, InvalidArgument

Floats: TypeAlias = NDArray[np.float32]

TEXT_COLUMN, QUERY_COLUMN, GROUP_COLUMN = "text", "query", "group"


@dataclass(frozen=True, slots=True)
class Query:
    """A query and its group (language, tenant); "" for none."""

    text: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class RelevantPair:
    """A query and a document that answers it."""

    query: Query
    document: str


class _Line(msgspec.Struct):
    query: str
    document: str
    group: str = ""


def read_texts(path: Path) -> list[str]:
    """The texts of a file: its lines, or the column `text` of JSONL or Parquet."""
    texts = list(open_texts(path, None, _column(path, TEXT_COLUMN)).texts)
    if not texts:
        raise InvalidArgument(f"{path} holds no texts")
    return texts


def read_queries(path: Path) -> list[Query]:
    """The queries of a file: its lines, or the column `query` of JSONL or Parquet; JSONL may have `group`."""
    texts = list(open_texts(path, None, _column(path, QUERY_COLUMN)).texts)
    if not texts:
        raise InvalidArgument(f"{path} holds no queries")
    if path.suffix.lower() not in {".jsonl", ".ndjson"}:
        return [Query(text) for text in texts]
    records = (msgspec.json.decode(line) for line in path.read_bytes().splitlines())
    return [
        Query(text, _group(record.get(GROUP_COLUMN, ""), f"{path}, line {number}"))
        for number, (text, record) in enumerate(zip(texts, records, strict=True), 1)
    ]


def read_pairs(path: Path) -> list[RelevantPair]:
    """The pairs of a JSONL file, one per line: {"query": ..., "document": ...}, optionally with "group"."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file")
    pairs = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found = msgspec.json.decode(line, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArgument(
                f'{path}, line {number} is not {{"query": "...", "document": "..."}}: {error}'
            ) from None
        pairs.append(RelevantPair(Query(found.query, found.group), found.document))
    if not pairs:
        raise InvalidArgument(f"{path} holds no pairs")
    return pairs


def read_vectors(url: str, texts: Sequence[str], space: str, dimensions: int) -> dict[str, Floats]:
    """The old vectors of those texts that a store holds, float32 (d,) by text.

    A store without texts, such as a .npy file, must have one row per text, in order.

    Raises AdapterError if the store's space, number, width or values cannot be those of the texts.
    """
    with stores.open_store(url) as store:
        if store.form.space is not None and store.form.space != space:
            raise AdapterError(
                f"{store.name} records its vectors in space {store.form.space}, but the old encoder's is "
                f"{space}: name the encoder that made them"
            )
        if store.form.dimensions != dimensions:
            raise AdapterError(
                f"{store.name} holds vectors of {store.form.dimensions} dimensions, but the old encoder's "
                f"have {dimensions}: they are of another space"
            )
        of_row: Iterator[str | None] = repeat(None)
        if all(each.text is None for each in store.page(None, 1)):
            if store.count() != len(texts):
                raise AdapterError(
                    f"{store.name} holds {store.count():,} vectors without texts, but there are "
                    f"{len(texts):,} texts: row i must be the vector of text i. Give the texts in the order "
                    "in which they were embedded"
                )
            of_row = iter(texts)
        found: dict[str, Floats] = {}
        wanted = set(texts)
        for batch in store.batches():
            for document, vector in zip(batch.documents, batch.vectors, strict=True):
                if not np.isfinite(vector).all():
                    raise AdapterError(
                        f"{store.name}: the vector of {document.id!r} holds NaN or infinity. Embed this text "
                        "again with the old encoder"
                    )
                text = next(of_row) or document.text
                if text in wanted:
                    found[text] = vector
        if not found:
            raise AdapterError(
                f"{store.name} holds none of the {len(texts):,} texts: are they its documents?"
            )
        return found


def sha256(path: Path) -> str:
    """The digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _column(path: Path, name: str) -> str | None:
    return name if path.suffix.lower() in {".jsonl", ".ndjson", ".parquet", ".pq"} else None


def _group(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: {GROUP_COLUMN!r} is {type(value).__name__}, not text")
    return value
