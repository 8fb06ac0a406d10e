"""The texts of a file, one after another: lines, or a column of JSONL or Parquet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from trimtab.errors import ConfigError, InvalidArgument
from trimtab.stores.ids import check_id

FORMATS = ("lines", "jsonl", "parquet")
_BY_SUFFIX = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
_BOM = b"\xef\xbb\xbf"


def same_file(left: Path, right: Path) -> bool:
    """Whether both exist and are the same file, following links."""
    return left.exists() and right.exists() and left.samefile(right)


@dataclass(frozen=True, slots=True)
class TextSource:
    """The texts to embed, in order, and their number if the file gives it."""

    texts: Iterator[str]
    total: int | None


def open_texts(path: Path | None, format: str | None, column: str | None) -> TextSource:
    """The texts of `path`, or of standard input for None. Format None: by the file's suffix.

    Raises ConfigError at once if it cannot be read; InvalidArgument, while texts are read, names the line or
    row of an invalid one.
    """
    format, column = check_source(path, format, column)
    if format == "lines":
        return TextSource(_lines(path), None)
    if format == "parquet" and path is not None:
        return _parquet(path, column)
    return TextSource(_jsonl(path, column), None)


def check_source(path: Path | None, format: str | None, column: str | None) -> tuple[str, str]:
    """The format of a source (by the file's suffix if not given), and its column, or "".

    Errors as in `open_texts`.
    """
    format = format or ("lines" if path is None else _BY_SUFFIX.get(path.suffix.lower(), "lines"))
    if path is not None and not path.exists():
        raise ConfigError(f"{path} does not exist")
    if path is not None and path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    if format == "lines":
        if column is not None:
            raise ConfigError(
                f"--column {column}: plain lines have no columns; pass --format jsonl or parquet"
            )
        return format, ""
    if column is None:
        raise ConfigError(f"--column is missing: which column of the {format} holds the texts?")
    if format == "parquet" and path is None:
        raise ConfigError(
            "Parquet cannot be read from standard input, as its index is at its end; name a file"
        )
    return format, column


@dataclass(frozen=True, slots=True)
class Block:
    """`rows` texts of a file from row `first` on; in a file of lines, they begin at this byte."""

    first: int
    rows: int
    offset: int


def find_blocks(path: Path, format: str, column: str, rows: int) -> list[Block]:
    """A file's texts in blocks of `rows`; the last block has the rest. A file of lines is read for this."""
    if format == "parquet":
        with _open_parquet(path, (column,)) as file:
            total: int = file.metadata.num_rows
        return [Block(first, min(rows, total - first), 0) for first in range(0, total, rows)]
    blocks, first, begin, offset, number = [], 0, 0, 0, 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            offset += len(line)
            if number - first == rows:
                blocks.append(Block(first, rows, begin))
                first, begin = number, offset
    return [*blocks, Block(first, number - first, begin)] if number > first else blocks


def read_block(path: Path, format: str, column: str, block: Block) -> list[str]:
    """The texts of a block. Errors as in `open_texts`."""
    if format == "lines":
        found = (_decoded(line, where) for where, line in _raw_lines(path, block.offset, block.first + 1))
        return list(islice(found, block.rows))
    rows = (
        _json_rows(path, (column,), block.offset, block.first + 1)
        if format == "jsonl"
        else _parquet_rows(path, (column,), block.first)
    )
    return [_text(value, where, column) for where, (value,) in islice(rows, block.rows)]


def _raw_lines(path: Path | None, offset: int = 0, first: int = 1) -> Iterator[tuple[str, bytes]]:
    """Each line without its newline, with its place for messages, from line `first` at byte `offset` on."""
    name = "standard input" if path is None else str(path)
    # A separate reader, because Python cannot exit while a thread waits in sys.stdin.
    with open(path or 0, "rb", closefd=path is not None) as stream:
        if offset:
            stream.seek(offset)
        for number, line in enumerate(stream, first):
            body = line.removesuffix(b"\n").removesuffix(b"\r")
            yield f"{name}, line {number}", body.removeprefix(_BOM) if number == 1 else body


def _lines(path: Path | None) -> Iterator[str]:
    for where, line in _raw_lines(path):
        yield _decoded(line, where)


def _jsonl(path: Path | None, column: str) -> Iterator[str]:
    for where, (value,) in _json_rows(path, (column,)):
        yield _text(value, where, column)


def _json_rows(
    path: Path | None, columns: Sequence[str], offset: int = 0, first: int = 1
) -> Iterator[tuple[str, list[Any]]]:
    """These columns of each line, with its place for messages."""
    for where, line in _raw_lines(path, offset, first):
        try:
            record = msgspec.json.decode(_decoded(line, where))
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidArgument(f"{where} is not JSON: {error}") from None
        for column in columns:
            if not isinstance(record, dict):
                raise InvalidArgument(f"{where} is not a JSON object with the column {column!r}")
            if column not in record:
                raise InvalidArgument(f"{where} has no column {column!r}; it has {_names(record)}")
        yield where, [record[column] for column in columns]


def _parquet(path: Path, column: str) -> TextSource:
    file = _open_parquet(path, (column,))
    rows = _rows_of(file, path, (column,))
    return TextSource((_text(value, where, column) for where, (value,) in rows), file.metadata.num_rows)


def _parquet_rows(path: Path, columns: Sequence[str], skip: int = 0) -> Iterator[tuple[str, list[Any]]]:
    return _rows_of(_open_parquet(path, columns), path, columns, skip)


def _open_parquet(path: Path, columns: Sequence[str]) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError("reading Parquet needs pyarrow: pip install 'trimtab[parquet]'") from None
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from None
    names = file.schema_arrow.names
    for column in columns:
        if column not in names:
            raise InvalidArgument(f"{path} has no column {column!r}; it has {_names(names)}")
    return file


def _rows_of(file: Any, path: Path, columns: Sequence[str], skip: int = 0) -> Iterator[tuple[str, list[Any]]]:
    row, groups = 0, list(range(file.metadata.num_row_groups))
    while groups and row + file.metadata.row_group(groups[0]).num_rows <= skip:
        row += file.metadata.row_group(groups.pop(0)).num_rows
    with file:
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=list(columns)):
            begin = min(max(skip - row, 0), len(batch))
            row += begin
            part = batch.slice(begin)
            for values in zip(*(part.column(name).to_pylist() for name in columns), strict=True):
                row += 1
                yield f"{path}, row {row}", list(values)


def read_documents(path: Path, id_column: str, text_column: str) -> dict[int | str, str]:
    """The texts of a JSONL or Parquet file by the ids beside them, all in memory.

    ConfigError if the file cannot be read. InvalidArgument, which names the line or row, if an id is neither
    an integer nor text, if a text is not text, or if an id occurs twice.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file")
    kind = _BY_SUFFIX.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: ids and texts are read from a .jsonl or a .parquet file")
    rows = _json_rows if kind == "jsonl" else _parquet_rows
    found: dict[int | str, str] = {}
    for where, (given, text) in rows(path, (id_column, text_column)):
        id = check_id(given, where)
        if id in found:
            raise InvalidArgument(f"{where}: the id {id!r} comes twice")
        found[id] = _text(text, where, text_column)
    return found


def _text(value: Any, where: str, column: str) -> str:
    if not isinstance(value, str):
        kind = "empty" if value is None else type(value).__name__
        raise InvalidArgument(f"{where}: column {column!r} is {kind}, not text")
    return value


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{where}: byte {error.start + 1} ({line[error.start]:#04x}) is not UTF-8; "
            "convert the file, such as with: iconv -f latin1 -t utf-8"
        ) from None


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
