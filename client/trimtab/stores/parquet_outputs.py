"""The outputs in a Parquet file of `trimtab embed --outputs`. Its metadata records them: `trimtab_outputs`.

A dense output is a column NAME of lists of one length, a multi-vector a column NAME of lists of such lists,
and a sparse vector two columns of lists, NAME_indices and NAME_values.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trimtab.errors import ConfigError, InvalidArgument
from trimtab.stores.base import DENSE, KINDS, Form, Kind, Query, Store, Values
from trimtab.stores.checks import check_query
from trimtab.stores.columns import column, similarity_of
from trimtab.values import multi_vector, sparse
from trimtab.values.multi_vector import MultiVectors
from trimtab.values.similarity import best
from trimtab.values.sparse import SparseVectors


class _Recorded(msgspec.Struct, frozen=True):
    form: str
    space: str
    dimensions: int
    similarity: str


def recorded(metadata: Mapping[bytes, bytes], path: Path) -> dict[str, Form]:
    """The outputs that a file's metadata records and a store can keep; {} if it records none."""
    content = metadata.get(b"trimtab_outputs")
    if content is None:
        return {}
    try:
        found = msgspec.json.decode(content, type=dict[str, _Recorded])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} records outputs that this Trimtab cannot read: {error}") from None
    kinds: Mapping[str, Kind] = {kind: kind for kind in KINDS}
    forms = {}
    for name, each in found.items():
        kind = kinds.get(each.form)
        similarity = similarity_of(kind, each.similarity) if kind else None
        if kind and similarity:
            forms[name] = Form(space=each.space, dimensions=each.dimensions, similarity=similarity, kind=kind)
    return forms


def columns_of(outputs: Mapping[str, Form], path: Path, there: Collection[str]) -> list[str]:
    """The columns of these outputs; InvalidArgument if one is missing."""
    names = []
    for name, form in outputs.items():
        names += [f"{name}_indices", f"{name}_values"] if form.kind == "sparse" else [name]
    for name in names:
        if name not in there:
            raise InvalidArgument(f"{path} records outputs, and has no column {name!r} of one")
    return names


def first_dense(outputs: Mapping[str, Form], path: Path) -> str:
    """The name of the first dense output. ConfigError if there is none."""
    name = next((name for name, form in outputs.items() if form.kind == DENSE), None)
    if name is None:
        raise ConfigError(f"{path} has {' and '.join(outputs)}, and none is dense; a store needs one that is")
    return name


def values_of(table: Any, name: str, form: Form, path: Path) -> Values:
    """The values of an output that is not dense; InvalidArgument if they do not fit its form."""
    found: Values
    if form.kind == "sparse":
        indptr, indices = _lists(table[f"{name}_indices"], path, name)
        other, numbers = _lists(table[f"{name}_values"], path, name)
        if not np.array_equal(indptr, other):
            raise InvalidArgument(f"{path}: {name!r} has rows with more indices than values, or fewer")
        found = SparseVectors(
            indptr, np.asarray(indices, np.int32), np.asarray(numbers, np.float32), form.dimensions
        )
    else:
        offsets, rows = _lists(table[name], path, name)
        vectors = np.asarray(rows.flatten(), np.float32)
        if len(vectors) != len(rows) * form.dimensions:
            raise InvalidArgument(f"{path}: {name!r} has vectors that are not of {form.dimensions} numbers")
        found = MultiVectors(vectors.reshape(-1, form.dimensions), offsets)
    if fault := column(form).fault(found, len(table)):
        raise InvalidArgument(f"{path}: {name!r} {fault}")
    return found


def nearest(store: Store, output: str, kept: Values, query: Query, k: int) -> list[tuple[int, float]]:
    """The rows nearest to a query by an output of a file, which is not dense, and their scores."""
    asked = check_query(store, query, k, output)
    if isinstance(kept, SparseVectors):
        near = sparse.dot(asked, kept)
        rows = np.flatnonzero(near > 0)
    else:
        one = MultiVectors(asked, np.array((0, len(asked)), np.int64))
        near = multi_vector.maxsim(one, kept)  # type: ignore[arg-type]
        rows = np.flatnonzero(np.isfinite(near))
    chosen = rows[best(near[rows], k)].tolist()
    return [(row, float(near[row])) for row in chosen]


def _lists(chunks: Any, path: Path, name: str) -> tuple[Any, Any]:
    """Offsets int64 (n + 1,) of a column of lists, and the flat values."""
    if chunks.null_count:
        raise InvalidArgument(f"{path}: {name!r} is missing in {chunks.null_count} rows")
    lists = chunks.combine_chunks()
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False), out=offsets[1:])
    return offsets, lists.flatten()
