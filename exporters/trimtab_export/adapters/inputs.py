"""What an adapter is fitted from: texts, queries and pairs in files, and the old index's vectors."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.commands.texts import open_texts
from trimtab.errors import AdapterError, ConfigError, InvalidArgument

Floats: TypeAlias = NDArray[np.float32]

TEXT_COLUMN, QUERY_COLUMN, GROUP_COLUMN = "text", "query", "group"


@dataclass(frozen=True, slots=True)
class Query:
    """A query, and the group (language, tenant) that it says it is of; "" for none."""

    text: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
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
    """The queries of a file: its lines, or the column `query` of JSONL or Parquet; of JSONL with `group`."""
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


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a JSONL file, a line each: {"query": ..., "document": ..., "group": ... where there is one}."""
    if not path.is_file():
        raise ConfigError(f"{path} is no file")
    pairs = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found = msgspec.json.decode(line, type=_Line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(
                f'{path}, line {number} is not {{"query": "...", "document": "..."}}: {error}'
            ) from None
        pairs.append(Pair(Query(found.query, found.group), found.document))
    if not pairs:
        raise InvalidArgument(f"{path} holds no pairs")
    return pairs


def read_vectors(path: Path, rows: int, dimensions: int) -> Floats:
    """The old index's vectors of the texts, row by row, float32 (rows, dimensions): .npy, or a Parquet column.

    Raises AdapterError where their number, their width or their values cannot be those of the texts.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is no file")
    vectors = _parquet(path) if path.suffix.lower() in {".parquet", ".pq"} else _npy(path)
    return check_vectors(vectors, str(path), rows, dimensions)


def check_vectors(vectors: NDArray[Any], name: str, rows: int, dimensions: int) -> Floats:
    """`vectors` as float32 where they can be the old vectors of `rows` texts; AdapterError where not."""
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise AdapterError(
            f"{name} holds {vectors.dtype} of shape {vectors.shape}; old vectors are rows of floats"
        )
    if len(vectors) != rows:
        raise AdapterError(
            f"{name} holds {len(vectors):,} vectors and there are {rows:,} texts: row i is to be the vector of "
            "text i. Give the texts in the order in which they were embedded"
        )
    if vectors.shape[1] != dimensions:
        raise AdapterError(
            f"{name} holds vectors of {vectors.shape[1]} dimensions, the old encoder's have {dimensions}: "
            "they are of another space"
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise AdapterError(
            f"{name}: {len(bad):,} vectors are not finite, the first of them in row {bad[0]}. Embed these texts "
            "again with the old encoder, or leave them out"
        )
    return np.ascontiguousarray(vectors, dtype=np.float32)


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


def _npy(path: Path) -> NDArray[Any]:
    try:
        vectors: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read as .npy: {error}") from None
    return vectors


def _parquet(path: Path) -> NDArray[Any]:
    """The one column of lists of floats."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError("reading Parquet needs pyarrow: pip install 'trimtab[parquet]'") from None
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise AdapterError(f"{path} cannot be read as Parquet: {error}") from None
    kinds = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
    names = [field.name for field in table.schema if any(is_kind(field.type) for is_kind in kinds)]
    if len(names) != 1:
        raise AdapterError(
            f"{path} has {len(names)} columns of lists; the vectors are to be the only one of them"
        )
    rows = table.column(names[0]).to_pylist()
    if len({None if row is None else len(row) for row in rows}) > 1 or None in rows:
        raise AdapterError(f"{path}, column {names[0]!r}: the rows are of unequal lengths")
    return np.array(rows, dtype=np.float32)
