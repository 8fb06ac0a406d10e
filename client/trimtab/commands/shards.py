"""A folder of Parquet files, one per block of texts, written and resumed by any number of workers.

    FOLDER/
        vectors.json                      describes the vectors and the blocks
        000000016384-0f3a....parquet      the block from row 16,384 on, with a digest of its texts
        lock                              held by the run that writes

A Parquet file has the columns `id` (the text's row in the input, from 0) and `vector` (a list of fixed
length; ubinary: bytes). Its metadata has the space (`trimtab_space`) and, for int8, the value of one step
(`trimtab_scale`). Files appear by a rename, so an existing one is complete.

With named outputs, there are columns for each instead: NAME with a list of fixed length for a dense one, or
with a list of such lists for several vectors; NAME_indices and NAME_values with lists for a sparse one. The
metadata has what is known of each (`trimtab_outputs`, as JSON).
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trimtab.artifacts import durable, locks
from trimtab.commands.description import Description, difference
from trimtab.commands.texts import Block
from trimtab.core.answers import Outputs, Vectors
from trimtab.errors import ConfigError, FailedPrecondition
from trimtab.values import multi_vector, sparse
from trimtab.values.dense import STORAGE

MANIFEST = "vectors.json"
_SHARD = re.compile(r"(\d{12})-([0-9a-f]{32})\.parquet")


class ShardManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vectors.json. `rows` is set when all blocks are there."""

    vectors: Description
    block_rows: int
    rows: int | None = None


def read_manifest(folder: Path) -> ShardManifest | None:
    """The manifest of a folder; None if the folder was not begun."""
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=ShardManifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be read as one that `trimtab embed` wrote: {error}. Name another folder"
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder if needed, and keep other runs out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = locks.hold(folder / "lock")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error
    if stream is None:
        raise FailedPrecondition(f"another `trimtab embed` is writing {folder}; wait for its end")
    with stream:
        yield


def begin(folder: Path, manifest: ShardManifest) -> None:
    """Claim a folder for these vectors; FailedPrecondition if it has other vectors, or foreign files."""
    before = read_manifest(folder)
    if before is None:
        if strangers := [path.name for path in folder.iterdir() if not _beside(path.name)]:
            raise FailedPrecondition(
                f"{folder} has no {MANIFEST}, but {strangers[0]!r}: name a folder that is empty, or new"
            )
    elif before.vectors != manifest.vectors:
        raise FailedPrecondition(difference(folder, before.vectors, manifest.vectors))
    elif before.block_rows != manifest.block_rows:
        raise FailedPrecondition(
            f"{folder} was begun with blocks of {before.block_rows} rows: pass --block-rows "
            f"{before.block_rows}, or --restart to begin again"
        )
    _write_manifest(folder, manifest)


def finish(folder: Path, manifest: ShardManifest, blocks: Sequence[Block]) -> int:
    """Record that all blocks are there. Returns the total number of rows."""
    there, rows = _shards(folder), sum(block.rows for block in blocks)
    wanted = {block.first for block in blocks}
    if missing := wanted - there.keys():
        raise FailedPrecondition(f"{folder} has no block of row {min(missing):,} any more; run it again")
    if over := there.keys() - wanted:
        raise FailedPrecondition(
            f"{folder} has a block from row {min(over):,} on, and the input has only {rows:,} rows: another "
            "input? Pass --restart to begin again"
        )
    _write_manifest(folder, msgspec.structs.replace(manifest, rows=rows))
    durable.sweep(folder)
    return rows


def clear(folder: Path) -> None:
    """Delete our own files, and nothing else; ConfigError if the manifest is not ours."""
    if read_manifest(folder) is None:
        return
    for path in folder.iterdir():
        if _SHARD.fullmatch(path.name):
            path.unlink()
    (folder / MANIFEST).unlink()
    durable.sweep(folder)


def shard_path(folder: Path, block: Block, texts: Iterable[str]) -> Path:
    """The file of a block with these texts."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return folder / f"{block.first:012d}-{digest.hexdigest()[:32]}.parquet"


def check(path: Path) -> bool:
    """Whether a block exists; FailedPrecondition if it exists with other texts."""
    if path.exists():
        return True
    first = path.name.partition("-")[0]
    if any(path.parent.glob(f"{first}-*.parquet")):
        raise FailedPrecondition(
            f"the texts from row {int(first):,} of the input on are not those whose vectors are in "
            f"{path.parent}: another input, or one that was changed? Pass --restart to begin again"
        )
    return False


def write(path: Path, first: int, vectors: Vectors, scale: float, description: Description) -> None:
    """Write the vectors of a block, (n, d), as one file, atomically."""
    stored = np.ascontiguousarray(vectors, STORAGE[description.dtype])
    metadata = {"trimtab_space": description.space}
    if description.dtype == "int8":
        metadata["trimtab_scale"] = repr(scale)
    _write_table(path, first, len(stored), {"vector": _rows(stored)}, metadata)


def write_outputs(path: Path, first: int, parts: Sequence[Outputs], description: Description) -> None:
    """Write the outputs of a block, which come in parts, as one file, atomically."""
    known = description.outputs or {}
    columns: dict[str, Any] = {}
    for name, output in known.items():
        values = [part[name] for part in parts]
        if output.form == "sparse":
            whole = sparse.joined(values)
            columns[f"{name}_indices"] = _lists(whole.indptr, whole.indices)
            columns[f"{name}_values"] = _lists(whole.indptr, whole.values)
        elif output.form == "multi_vector":
            several = multi_vector.joined(values)
            columns[name] = _lists(several.offsets, several.vectors)
        else:
            columns[name] = _rows(np.concatenate(values))
    metadata = {"trimtab_outputs": msgspec.json.encode(known).decode()}
    _write_table(path, first, sum(len(part.token_counts) for part in parts), columns, metadata)


def _rows(matrix: Vectors) -> Any:
    """A column of the rows of a matrix."""
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(matrix.ravel()), matrix.shape[1])


def _lists(offsets: Vectors, values: Vectors) -> Any:
    """A column of lists: of numbers, or of rows."""
    import pyarrow

    flat = pyarrow.array(values) if values.ndim == 1 else _rows(values)
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets), flat)


def _write_table(
    path: Path, first: int, rows: int, columns: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    import pyarrow
    from pyarrow import parquet

    ids = pyarrow.array(np.arange(first, first + rows))
    table = pyarrow.table({"id": ids, **columns}).replace_schema_metadata(dict(metadata))
    # Two workers may make the same block if one was mistaken for dead: each writes its own file.
    with durable.replacing(path) as stream:
        parquet.write_table(table, stream)


def _beside(name: str) -> bool:
    """Whether a file may be in a folder that was not begun."""
    return name == "lock" or durable.PARTIAL.fullmatch(name) is not None


def _shards(folder: Path) -> dict[int, str]:
    matches = (_SHARD.fullmatch(path.name) for path in folder.iterdir())
    return {int(match[1]): match[2] for match in matches if match}


def _write_manifest(folder: Path, manifest: ShardManifest) -> None:
    durable.replace(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
