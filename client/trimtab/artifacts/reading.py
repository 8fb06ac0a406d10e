"""Reads files in a folder that a stranger may have written, and may still be writing to.

A file is opened once, without following any link out of the folder. It must be a regular file of the expected
size. What was hashed is what is used, whatever the path leads to a moment later. A hard link cannot be
distinguished from any other file, and need not be: its content is checked.

Imports nothing from Trimtab, since a device's own process uses this, too.
"""

import hashlib
import os
import stat
from io import FileIO
from pathlib import Path

# Walking through a folder needs no permission to list it.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Opening a FIFO or a terminal must not wait for its other end.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_PART = 1 << 20


class UnreadableError(Exception):
    """A file that is not as expected; the message names it and says why."""


def opened(folder: Path, name: str) -> FileIO:
    """A regular file of the folder, opened without a buffer. FileNotFoundError if there is none."""
    path = folder / name
    try:
        handle = _descriptor(folder, name)
    except FileNotFoundError:
        raise
    except ValueError:
        raise UnreadableError(f"{path} is a link that leads out of {folder}") from None
    except (OSError, RuntimeError) as error:  # some Python versions raise RuntimeError for a loop of links
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnreadableError(f"{path} cannot be read: {reason}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UnreadableError(f"{path} is not a regular file")
    return FileIO(handle)


def small(folder: Path, name: str, most: int) -> bytes:
    """The content of a file of at most `most` bytes. FileNotFoundError if there is none."""
    with opened(folder, name) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise UnreadableError(f"{folder / name} has more than {most} bytes, more than it may have")
    return content


def check(folder: Path, name: str, size: int, sha256: str | None) -> None:
    """Raise UnreadableError unless a file has this size and, if given, this SHA-256."""
    with _sized(folder, name, size) as stream:
        if sha256 is not None:
            found, rest = hashlib.sha256(), size
            while rest and (part := stream.read(min(rest, _PART))):
                found.update(part)
                rest -= len(part)
            _compare(folder / name, found.hexdigest(), sha256)


def content(folder: Path, name: str, size: int, sha256: str) -> bytearray:
    """The content of a file. UnreadableError if its size or SHA-256 is not this one."""
    with _sized(folder, name, size) as stream:
        try:
            data = bytearray(size)
        except MemoryError:
            raise UnreadableError(f"{folder / name}: not enough memory for its {size} bytes") from None
        view, at = memoryview(data), 0
        while got := stream.readinto(view[at:]):
            at += got
        _compare(folder / name, hashlib.sha256(view[:at]).hexdigest(), sha256)
    return data


def _sized(folder: Path, name: str, size: int) -> FileIO:
    try:
        stream = opened(folder, name)
    except FileNotFoundError:
        raise UnreadableError(f"{folder / name} is missing") from None
    found = os.fstat(stream.fileno()).st_size
    if found != size:
        stream.close()
        raise UnreadableError(
            f"{folder / name} has {found} bytes, its manifest says {size}: the file was changed or cut off"
        )
    return stream


def _compare(path: Path, found: str, sha256: str) -> None:
    if found != sha256:
        raise UnreadableError(f"{path} does not have the SHA-256 of its manifest: the file was changed")


def _descriptor(folder: Path, name: str) -> int:
    """Open a file of the folder. ValueError if links lead out of the folder.

    Links are resolved once; then the path is walked without following any, since it may have changed.
    """
    root = folder.resolve(strict=True)
    *parents, last = (root / name).resolve(strict=True).relative_to(root).parts or (".",)
    at = os.open(root, _FOLDER)
    try:
        for parent in parents:
            at, before = os.open(parent, _FOLDER, dir_fd=at), at
            os.close(before)
        return os.open(last, _FILE, dir_fd=at)
    finally:
        os.close(at)
