"""Files that one process at a time may hold. The kernel releases them when the process ends, in any way."""

import fcntl
import os
from pathlib import Path
from typing import IO


def hold(path: Path) -> IO[bytes] | None:
    """The file, created if missing, opened to read and write, and held until it is closed.

    None if another process holds it, or was just renaming or deleting it. Raises OSError if the file cannot
    be opened.
    """
    stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
    if claim(stream):
        try:
            if path.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                return stream
        except FileNotFoundError:
            pass
    stream.close()
    return None


def claim(stream: IO[bytes]) -> bool:
    """Try to hold an open file. Returns whether this process, and no other, now holds it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
