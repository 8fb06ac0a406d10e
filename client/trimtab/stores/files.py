"""Read-only vectors in a file: a .npy array as `trimtab embed` writes it, or a column of a Parquet file.

A .npy file's ids are its row numbers, and it has no texts; FILE.npy.json beside it names the space. A
Parquet file has the columns `id`, `text` (it may be missing) and `vector` (lists of numbers); options name
others: `docs.parquet#?id=doc&text=body&vector=embedding`. Its key-value metadata may name the space as
`trimtab_space`, or record several outputs (see parquet_outputs). Both are searched by comparing with every
vector.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument, NotFound
from trimtab.kinds import Similarity
from trimtab.stores import parquet_outputs
from trimtab.stores.address import Address
from trimtab.stores.base import DENSE, SIMILARITIES, Document, Form, Hit, Matrix, Query, Rows, Store, Values
from trimtab.stores.checks import check_query, files_identity, space_of
from trimtab.stores.columns import column
from trimtab.stores.ids import Id, check_id, order
from trimtab.values.similarity import nearest

_CHUNK = 65_536


class _Described(msgspec.Struct, frozen=True):
    space: str | None = None


class _Beside(msgspec.Struct, frozen=True):
    """The part of `trimtab embed`'s FILE.npy.json that is used here."""

    vectors: _Described = _Described()


class FileStore(Store):
    """The vectors of a file, read-only."""

    def __init__(
        self,
        address: Address,
        ids: Sequence[Id],
        texts: Sequence[str | None] | None,
        vectors: NDArray[np.floating[Any]],
        space: str | None,
        *,
        similarity: Similarity = "cosine",
        output: str = DENSE,
        others: Mapping[str, tuple[Form, Values]] | None = None,
    ) -> None:
        """similarity: what the file says. output, others: its name for the vectors, and its other outputs."""
        self.name, self._path = address.name, Path(address.location)
        self._ids, self._texts, self._vectors = ids, texts, vectors
        self.output, self._others = output, {name: values for name, (_, values) in (others or {}).items()}
        self.others = {name: form for name, (form, _) in (others or {}).items()}
        similarity = address.options.get("similarity", similarity)  # type: ignore[assignment]
        if similarity not in SIMILARITIES:
            raise ConfigError(f"similarity {similarity!r} is not known; it is {', '.join(SIMILARITIES)}")
        known: Similarity = similarity
        self.form = Form(
            space=space_of(space, address.options.get("space"), self.name),
            dimensions=vectors.shape[1],
            similarity=known,
        )
        self._place: dict[Id, int] | None = None
        if not isinstance(ids, range):
            self._place = {id: row for row, id in enumerate(ids)}
            if len(self._place) != len(ids):
                raise FailedPrecondition(f"{self.name} has an id twice; give each row its own")
            self._ordered: Sequence[Id] = sorted(ids, key=order)
        else:
            self._ordered = ids

    def identity(self) -> frozenset[Hashable]:
        return files_identity(self._path)

    def count(self) -> int:
        return len(self._ids)

    def page(self, after: Id | None, size: int) -> list[Document]:
        start = 0 if after is None else bisect_right(self._ordered, order(after), key=order)
        return [self._document(self._row(id)) for id in self._ordered[start : start + size]]

    def sample(self, count: int) -> list[Id]:
        chosen = np.random.default_rng().permutation(len(self._ids))[:count]
        return [self._ids[row] for row in chosen.tolist()]

    def get(self, ids: Sequence[Id]) -> Rows:
        rows = [row for row in map(self._row, ids) if row >= 0]
        others = {}
        for name, values in self._others.items():
            kept = column(self.others[name])
            items = kept.items(values)
            others[name] = kept.assembled([items[row] for row in rows])
        vectors = np.asarray(self._vectors[rows], np.float32)
        return Rows([self._document(row) for row in rows], vectors, others)

    def texts(self, ids: Sequence[Id]) -> dict[Id, str | None]:
        documents = [self._document(row) for row in map(self._row, ids) if row >= 0]
        return {document.id: document.text for document in documents}

    def search(self, vector: Matrix, k: int) -> list[Hit]:
        query = check_query(self, vector, k)
        near, rows = nearest(query, self._parts(), self.form.similarity, k)
        found = [
            (self._document(row), score) for row, score in zip(rows.tolist(), near.tolist(), strict=True)
        ]
        return [Hit(document.id, document.text, score) for document, score in found]

    def search_output(self, output: str, query: Query, k: int) -> list[Hit]:
        if output not in self._others:
            return super().search_output(output, query, k)
        found = parquet_outputs.nearest(self, output, self._others[output], query, k)
        documents = [(self._document(row), score) for row, score in found]
        return [Hit(document.id, document.text, score) for document, score in documents]

    def _parts(self) -> Iterator[Matrix]:
        """All vectors as float32, in parts, so that a large file is never copied as a whole."""
        for start in range(0, max(len(self._ids), 1), _CHUNK):
            yield np.asarray(self._vectors[start : start + _CHUNK], np.float32)

    def _row(self, id: Id) -> int:
        """The row of an id; -1 if there is none."""
        if self._place is not None:
            return self._place.get(id, -1)
        return id if isinstance(id, int) and 0 <= id < len(self._ids) else -1

    def _document(self, row: int) -> Document:
        return Document(self._ids[row], None if self._texts is None else self._texts[row])


def open_npy(address: Address) -> FileStore:
    """A .npy file, mapped into memory: (n, d), of any floating type."""
    path = Path(address.location)
    address.take("space", "similarity")
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a NumPy array: {error}") from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise ConfigError(
            f"{path} is an array of shape {vectors.shape} and type {vectors.dtype}; vectors are (n, d) floats"
        )
    beside = path.with_name(f"{path.name}.json")
    space = None
    if beside.exists():
        try:
            space = msgspec.json.decode(beside.read_bytes(), type=_Beside).vectors.space
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{beside} cannot be read: {error}") from None
    return FileStore(address, range(len(vectors)), None, vectors, space)


def open_parquet(address: Address) -> FileStore:
    """A Parquet file, with its columns read into memory."""
    import pyarrow
    from pyarrow import parquet

    options = address.take("id", "text", "vector", "space", "similarity")
    path = Path(address.location)
    try:
        file = parquet.ParquetFile(path)
        there, metadata = file.schema_arrow.names, file.schema_arrow.metadata or {}
        outputs = parquet_outputs.recorded(metadata, path)
        vector = options.get("vector", "vector")
        if outputs and "vector" not in options:
            vector = parquet_outputs.first_dense(outputs, path)
        # Other dense outputs are named beside; vector= reads one of them.
        others = {name: form for name, form in outputs.items() if form.kind != DENSE}
        names = [options.get("id", "id"), options.get("text", "text"), vector]
        for name in {names[0], names[2]} | ({names[1]} if "text" in options else set()):
            if name not in there:
                raise InvalidArgument(f"{path} has no column {name!r}; it has {', '.join(map(repr, there))}")
        names += parquet_outputs.columns_of(others, path, there)
        with file:
            table = file.read(columns=[name for name in names if name in there])
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from None
    ids = [check_id(id, f"{path}, row {row}") for row, id in enumerate(table[names[0]].to_pylist(), 1)]
    texts = _texts(table[names[1]], ids, path, names[1]) if names[1] in there else None
    own = outputs.get(vector)
    kept = {name: (form, parquet_outputs.values_of(table, name, form, path)) for name, form in others.items()}
    space = metadata.get(b"trimtab_space", b"").decode(errors="replace") or None
    store = FileStore(
        address, ids, texts, _matrix(table[vector], ids, path, vector),
        own.space if own else space,
        similarity=own.similarity if own else "cosine",
        output=vector if own else DENSE,
        others=kept,
    )  # fmt: skip
    store.beside = [name for name in there if name not in names]
    return store


def _texts(column: Any, ids: Sequence[Id], path: Path, name: str) -> list[str | None]:
    texts: list[str | None] = column.to_pylist()
    for row, text in enumerate(texts):
        if not isinstance(text, str | None):
            kind = type(text).__name__
            raise InvalidArgument(
                f"{path}, row {row + 1}, document {ids[row]!r}: {name!r} is {kind}, not text"
            )
    return texts


def _matrix(column: Any, ids: Sequence[Id], path: Path, name: str) -> Matrix:
    """A column of lists of numbers as (n, d); InvalidArgument, which names a row."""
    from pyarrow import compute, types

    if not len(column):
        raise InvalidArgument(f"{path} has no rows")
    type = column.type
    lists = types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type)
    if not lists or not (types.is_floating(type.value_type) or types.is_integer(type.value_type)):
        raise InvalidArgument(f"{path}: column {name!r} is of type {type}, and holds no lists of numbers")
    lengths = compute.list_value_length(column).to_pylist()
    usual = Counter(length for length in lengths if length is not None).most_common(1)
    wanted = usual[0][0] if usual else 0
    flat = column.combine_chunks().flatten()
    for row, length in enumerate(lengths):
        if length != wanted or (flat.null_count and column[row].values.null_count):
            found = "no vector" if length is None else f"a vector of {length} numbers"
            raise InvalidArgument(
                f"{path}, row {row + 1}, document {ids[row]!r}: {name!r} holds {found}, where others hold "
                f"{wanted} and none is missing"
            )
    return np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(len(column), -1)
