"""How a FAISS store lies on the disk, so that no crash at any moment loses or halves a write.

    FOLDER/
        store.json      the catalogue: the space, the similarity, the generation N and the two files below
        index-N.faiss   any FAISS index that can reconstruct its vectors
        rows-N.jsonl    {"id": ..., "text": ...}: a line for each row of the index
        log-N           what was written since, record by record
        lock            held by the process that writes

A write is one record at the end of the log, and on the disk before the call returns. A record that a crash
cut off counts for nothing, and the next writer cuts it away. A new generation is written whole beside the
old one before store.json, replaced as a whole, names it.
"""

import fcntl
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from trimtab.bundle import Similarity
from trimtab.errors import ConfigError, FailedPrecondition
from trimtab.stores.base import Id

FORMAT = 1
CATALOGUE = "store.json"
_FRAME = 8  # a record's length and CRC-32, four bytes each, little-endian


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """store.json. `index` and `rows` are files of the same folder."""

    space: str | None = None
    dimensions: int
    similarity: Similarity = "cosine"
    index: str
    rows: str
    generation: int = 0
    format: int = FORMAT


class Row(msgspec.Struct, frozen=True):
    """A document in a line of rows, or in a record."""

    id: Id
    text: str | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What one write did: documents with their vectors (float32, row by row), or ids that were deleted."""

    rows: list[Row] = []
    vectors: bytes = b""
    deleted: list[Id] = []


def read_catalogue(folder: Path) -> Catalogue:
    """store.json. FileNotFoundError where there is none, ConfigError where it cannot be used."""
    path = folder / CATALOGUE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Catalogue)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if found.format != FORMAT:
        raise ConfigError(f"{path} is of format {found.format}, this Trimtab reads format {FORMAT}")
    for file in (found.index, found.rows):
        if Path(file).name != file:
            raise ConfigError(f"{path} names {file!r}, which is no file of the same folder")
    return found


def write_catalogue(folder: Path, catalogue: Catalogue) -> None:
    """Replace store.json as a whole: whatever happens, it is the old one or the new one."""
    fresh = folder / f"{CATALOGUE}.new"
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(catalogue), indent=2) + b"\n")
    sync(fresh)
    fresh.replace(folder / CATALOGUE)
    sync(folder)


def sweep(folder: Path, catalogue: Catalogue) -> None:
    """Delete the files of other generations that a crash left behind. Only for who holds the lock."""
    named = {catalogue.index, catalogue.rows, log_path(folder, catalogue.generation).name}
    for pattern in ("index-*.faiss", "rows-*.jsonl", "log-*"):
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()


def read_rows(path: Path) -> list[Row]:
    """The lines of a file of rows; ConfigError names the one that is none."""
    decoder = msgspec.json.Decoder(Row)
    rows = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                rows.append(decoder.decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}, line {number}: {error}") from None
    return rows


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write a file of rows, and bring it to the disk."""
    encoder = msgspec.json.Encoder()
    with path.open("wb") as stream:
        stream.writelines(encoder.encode(row) + b"\n" for row in rows)
    sync(path)


def log_path(folder: Path, generation: int) -> Path:
    """Where the log of a generation lies."""
    return folder / f"log-{generation}"


def read_log(path: Path, start: int) -> Iterator[tuple[Record, int]]:
    """The records from byte `start` on, each with the place where it ends. One that is cut off is none."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        stream.seek(start)
        while len(frame := stream.read(_FRAME)) == _FRAME:
            length, checksum = int.from_bytes(frame[:4], "little"), int.from_bytes(frame[4:], "little")
            body = stream.read(length)
            if len(body) < length:
                return
            if zlib.crc32(body) != checksum:
                if stream.read(1):
                    raise FailedPrecondition(
                        f"{path} is damaged at byte {start:,}: its checksum is wrong. "
                        "Bring it back from a copy"
                    )
                return
            start += _FRAME + length
            yield msgspec.msgpack.decode(body, type=Record), start


class LogWriter:
    """The end of a log, for the process that holds the folder's lock."""

    def __init__(self, path: Path, end: int) -> None:
        self._stream: IO[bytes] = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", 0)
        self._stream.truncate(end)
        self._stream.seek(end)
        sync(path.parent)

    def append(self, record: Record) -> int:
        """Write a record and bring it to the disk. Returns where it ends."""
        body = msgspec.msgpack.encode(record)
        frame = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
        rest = memoryview(frame + body)
        while rest:
            rest = rest[self._stream.write(rest) :]
        os.fsync(self._stream.fileno())
        return self._stream.tell()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def lock(folder: Path, name: str) -> IO[bytes]:
    """The folder's lock, held until it is closed; FailedPrecondition where another process has it."""
    stream = os.fdopen(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise FailedPrecondition(f"another process is writing {name}; wait for its end") from None
    return stream


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
