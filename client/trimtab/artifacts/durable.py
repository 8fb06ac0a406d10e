"""Replacing files durably: written beside the old one, synced to the disk, read back, then renamed.

A failed write is not always reported: some libraries print the error and continue, and a full disk may have
space again when it is checked. So the new file is read back from the disk and compared, by length and
checksum, while the old one still exists. Temporary files are named `.trimtab-HEX.partial` and are locked
while they are written; an unlocked one was left by a crash.
"""

import errno
import io
import os
import re
import stat
import sys
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from trimtab.artifacts import locks

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PARTIAL = re.compile(r"\.trimtab-[0-9a-f]{32}\.partial")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Sum:
    """The length of a file in bytes, and the CRC-32 of its content."""

    bytes: int
    crc32: int


class Replacement(io.RawIOBase):
    """A file being written from beginning to end, with the checksum of what has been written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._bytes = self._crc32 = 0

    @property
    def sum(self) -> Sum:
        """The length and checksum of what was written."""
        return Sum(self._bytes, self._crc32)

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        self._stream.write(view)
        self._bytes += len(view)
        self._crc32 = zlib.crc32(view, self._crc32)
        return len(view)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        if not self._stream.closed:
            self._stream.flush()


@contextmanager
def replacing(path: Path) -> Iterator[Replacement]:
    """Write a file that replaces `path`, or creates it, when the block ends.

    Whatever happens, `path` is either the old file or the complete new one. Raises OSError, and changes
    nothing, if the new file cannot be written, or if a folder or a device has this name.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISLNK(mode):
            raise OSError(errno.EEXIST, "exists and is not a file", str(path))
    fresh, stream = open_partial(path.parent)
    try:
        with stream:
            written = Replacement(stream)
            yield written
            stream.flush()
            settle(stream.fileno(), path, written.sum)
            fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace(path: Path, content: bytes) -> Sum:
    """`replacing` with all of the content at once. Returns its sum."""
    with replacing(path) as stream:
        stream.write(content)
    return stream.sum


def settle(descriptor: int, path: Path, expected: Sum, head: bytes = b"") -> None:
    """Sync an open file to the disk, and read it back; OSError if it is not what was written.

    expected: the sum of what follows `head`.
    """
    _to_disk(descriptor)
    if os.pread(descriptor, len(head), 0) != head:
        raise OSError(errno.EIO, "its head was written, but does not read back", str(path))
    found = sum_of(descriptor, len(head))
    if found != expected:
        raise OSError(
            errno.EIO,
            f"{expected.bytes:,} bytes were written, but reading them back gives "
            + ("others" if found.bytes == expected.bytes else f"{found.bytes:,}"),
            str(path),
        )


def sum_of(descriptor: int, start: int = 0, end: int | None = None) -> Sum:
    """The length and checksum of an open file, or of its bytes from `start` to `end`; its position stays."""
    length = crc32 = 0
    most = sys.maxsize if end is None else end - start
    while chunk := os.pread(descriptor, min(_CHUNK, most - length), start + length):
        length += len(chunk)
        crc32 = zlib.crc32(chunk, crc32)
    return Sum(length, crc32)


def settle_all(folder: Path) -> None:
    """Sync all files under a folder, and drop them from the cache, so the next read is from the disk."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _to_disk(descriptor)
        finally:
            os.close(descriptor)


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Delete temporary files that crashes left in a folder, but not those being written."""
    for path in folder.iterdir():
        if PARTIAL.fullmatch(path.name):
            with suppress(OSError), path.open("rb") as stream:
                if locks.claim(stream):
                    path.unlink()


def _to_disk(descriptor: int) -> None:
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):  # otherwise the next read may be served by the cache
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def open_partial(folder: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file, locked."""
    while True:
        path = folder / f".trimtab-{uuid.uuid4().hex}.partial"
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "r+b")
        if locks.claim(stream) and os.fstat(stream.fileno()).st_nlink:
            return path, stream
        stream.close()  # a sweep mistook it for a leftover of a crash
