"""The log of a FAISS store: what was written after its index, record by record.

A record is on the disk before the call that writes it returns. One that a crash cut off is ignored.
"""

import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from trimtab.artifacts import durable
from trimtab.errors import DamagedError
from trimtab.stores.ids import Id

_FRAME = 8  # a record's length and CRC-32, four bytes each, little-endian
_BEGINNING = b"\x83\xa4rows"  # every record is a map of three whose first key is `rows`


class Row(msgspec.Struct, frozen=True):
    """A document in a line of rows, or in a record."""

    id: Id
    text: str | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What one write did: documents with their vectors (float32, row by row), or deleted ids."""

    rows: list[Row] = []
    vectors: bytes = b""
    deleted: list[Id] = []


def read_log(path: Path, start: int) -> Iterator[tuple[Record, int]]:
    """The records from byte `start` on, each with the position of its end.

    What a crash left at the end is ignored: a record that is cut off, or zeros in its place. DamagedError if
    anything but a record precedes a record.
    """
    if not path.is_file() or (size := path.stat().st_size) <= start:
        return
    with path.open("rb") as stream:
        stream.seek(start)
        while (body := _record(stream, size)) is not None:
            start += _FRAME + len(body)
            yield msgspec.msgpack.decode(body, type=Record), start
        if start < size and _record_behind(stream, start, size):
            raise DamagedError(f"{path} is damaged at byte {start:,}. Restore it from a copy")


def _record(stream: IO[bytes], size: int) -> bytes | None:
    """The record at this position of a log, undecoded; None if there is no complete one."""
    frame = stream.read(_FRAME)
    length, checksum = int.from_bytes(frame[:4], "little"), int.from_bytes(frame[4:], "little")
    if len(frame) < _FRAME or length > size - stream.tell():
        return None
    body = stream.read(length)
    # The CRC-32 of nothing is 0: zeros would pass for a record without this check of its beginning.
    return body if body.startswith(_BEGINNING) and zlib.crc32(body) == checksum else None


def _record_behind(stream: IO[bytes], start: int, size: int) -> bool:
    """Whether a complete record begins anywhere after this position of a log."""
    with mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as whole:
        place = start + _FRAME
        while (place := whole.find(_BEGINNING, place + 1)) >= 0:
            stream.seek(place - _FRAME)
            if _record(stream, size) is not None:
                return True
    return False


class LogWriter:
    """The end of a log, for the process that holds the folder's lock."""

    def __init__(self, path: Path, end: int) -> None:
        self._stream: IO[bytes] = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", 0)
        self._stream.truncate(end)
        self._stream.seek(end)
        durable.sync(path.parent)

    def append(self, record: Record) -> int:
        """Write a record and sync it to the disk. Returns where it ends."""
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
