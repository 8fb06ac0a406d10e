"""Files of vectors, written row by row, that another run can resume after any kind of stop.

    OUT.partial       the rows so far
    OUT.partial.json  the journal: how many rows count, what they are, and a digest of their inputs
    OUT               the finished file: the renamed OUT.partial
    OUT.json          describes the vectors: encoder, version, space, scale

The journal is written before the rows, and replaced atomically after the rows that it counts are on the disk.
The next run removes rows beyond those and makes them again, so the file is the same however often it was
interrupted. Foreign files with such names are neither written nor deleted.
"""

import hashlib
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from trimtab.artifacts import durable, locks
from trimtab.artifacts.durable import Sum
from trimtab.commands.description import Description, difference
from trimtab.commands.layouts import layout_of
from trimtab.errors import ConfigError, FailedPrecondition, InternalError

CHECKPOINT_ROWS = 10_000
CHECKPOINT_SECONDS = 5.0


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a file."""

    vectors: Description
    scale: float  # the value of one int8 step
    rows: int
    bytes: int
    inputs_sha256: str  # over the texts of these rows
    crc32: int | None = None  # of these rows, behind the header


@dataclass(frozen=True, slots=True)
class _WriteState:
    rows: int
    bytes: int
    inputs: Any  # a running SHA-256
    crc32: int = 0


def read_journal(output: Path) -> Journal | None:
    """The journal of an unfinished file, if there is one to resume."""
    partial, path = partial_paths(output)
    return _read(path) if partial.exists() else None


def complete(output: Path) -> None:
    """Finish the work of a run that was stopped after OUT got its name."""
    partial, path = partial_paths(output)
    if output.exists() and not partial.exists() and (journal := _read(path)) is not None:
        with output.open("rb") as stream:
            head = len(layout_of(output, journal.vectors).header(0))
            found = durable.sum_of(stream.fileno(), head)
        if (found.bytes + head, found.crc32) == (journal.bytes, journal.crc32):
            durable.replace(_beside(output), path.read_bytes())
            path.unlink()


def _read(path: Path) -> Journal | None:
    """A journal, or the description of a finished file; ConfigError if it is not ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Journal)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be read as one that `trimtab embed` wrote: {error}. Move it away, or name "
            "another --output"
        ) from None


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.json")


def partial_paths(output: Path) -> tuple[Path, Path]:
    """The paths of the unfinished rows and their journal."""
    return output.with_name(f"{output.name}.partial"), output.with_name(f"{output.name}.partial.json")


class VectorFile:
    """A file being written. After `skip`, the next row to write is row number `rows`."""

    def __init__(self, output: Path, vectors: Description, journal: Journal | None = None) -> None:
        if journal is not None and journal.vectors != vectors:
            raise FailedPrecondition(difference(partial_paths(output)[0], journal.vectors, vectors))
        self._output, self._vectors, self._journal = output, vectors, journal
        self._layout = layout_of(output, vectors)
        self._partial, self._journal_path = partial_paths(output)
        _read(_beside(output))
        begun = _read(self._journal_path) is not None
        if not begun and self._partial.exists() and self._partial.stat().st_size:
            raise FailedPrecondition(
                f"{self._partial} exists without its journal, so `trimtab embed` did not write it; move it "
                "away, or name another --output"
            )
        self.scale = journal.scale if journal else 0.0
        header = self._layout.header(0)
        self._state = _WriteState(0, len(header), hashlib.sha256())
        self._file = _open_locked(self._partial)
        try:
            if journal is not None and _read(self._journal_path) != journal:
                raise FailedPrecondition(
                    f"another `trimtab embed` has resumed {self._partial}; repeat the command"
                )
            if journal is None:
                durable.replace(self._journal_path, self._describe())
                self._file.truncate(0)
                self._file.write(header)
            else:
                self._crc32 = self._checked(journal, len(header))
                self._file.truncate(journal.bytes)
                self._file.seek(journal.bytes)
        except BaseException:
            self._file.close()
            raise
        self._saved, self._saved_at = self._state, time.monotonic()

    @property
    def rows(self) -> int:
        """How many rows have been written."""
        return self._state.rows

    def skip(self, texts: Iterator[str]) -> None:
        """Skip the texts that already have rows; FailedPrecondition if they are not the same texts."""
        if self._journal is None:
            return
        inputs = hashlib.sha256()
        for row in range(self._journal.rows):
            text = next(texts, None)
            if text is None:
                raise FailedPrecondition(
                    f"the input has only {row:,} texts, but {self._partial} has the vectors of "
                    f"{self._journal.rows:,}: another input? Pass --restart to begin again"
                )
            _hash(inputs, text)
        if inputs.hexdigest() != self._journal.inputs_sha256:
            raise FailedPrecondition(
                f"the first {self._journal.rows:,} texts of the input are not those whose vectors are in "
                f"{self._partial}: another input, or one that was changed? Pass --restart to begin again"
            )
        self._state = self._saved = _WriteState(self._journal.rows, self._journal.bytes, inputs, self._crc32)

    def write(self, text: str, value: Any, scale: float) -> None:
        """Write the vector of the next text, or what it has of each output."""
        if self._vectors.outputs is None and len(value) != self._vectors.columns:
            raise InternalError(
                f"the server's vector has {len(value)} columns, not the {self._vectors.columns} announced"
            )
        if self.rows and scale != self.scale:
            raise FailedPrecondition(
                f"the server's int8 scale is {scale:g} now, and was {self.scale:g} for the rows before; "
                "pass --restart to begin again"
            )
        self.scale = scale
        data = self._layout.row(self.rows, value)
        inputs = self._state.inputs.copy()
        _hash(inputs, text)
        self._file.write(data)
        # One assignment, so that rows, bytes and inputs are consistent at any interrupt.
        crc32 = zlib.crc32(data, self._state.crc32)
        self._state = _WriteState(self.rows + 1, self._state.bytes + len(data), inputs, crc32)
        if (
            self.rows - self._saved.rows >= CHECKPOINT_ROWS
            or time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS
        ):
            self.checkpoint()

    def checkpoint(self) -> None:
        """Sync the rows so far to the disk, then the journal that counts them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        durable.replace(self._journal_path, self._describe())
        self._saved, self._saved_at = self._state, time.monotonic()

    def stop(self) -> int:
        """Stop so that another run can resume. Returns how many rows are kept; if none, no file is kept."""
        if self.rows:
            with suppress(OSError):  # a full disk: the last checkpoint stands
                self.checkpoint()
        elif self._journal is None:
            self._journal_path.unlink(missing_ok=True)
            self._partial.unlink()
        with suppress(OSError):
            self._file.close()
        return self._saved.rows

    def finish(self) -> None:
        """Write the final header, read the whole file back, and rename it to its final name."""
        header = self._layout.header(self.rows)
        self._file.seek(0)
        self._file.write(header)
        self.checkpoint()
        rows = Sum(self._state.bytes - len(header), self._state.crc32)
        durable.settle(self._file.fileno(), self._partial, rows, header)
        _read(_beside(self._output))  # refuses to replace a foreign file
        # In this order no file ever has another's description. `complete` finishes after a crash.
        _beside(self._output).unlink(missing_ok=True)
        self._partial.replace(self._output)
        durable.sync(self._output.parent)
        durable.replace(_beside(self._output), self._describe())
        self._journal_path.unlink(missing_ok=True)
        self._file.close()

    def _checked(self, journal: Journal, head: int) -> int:
        """The checksum of the rows that the journal counts; FailedPrecondition if they were changed."""
        found = durable.sum_of(self._file.fileno(), head, journal.bytes)
        if found.bytes < journal.bytes - head:
            raise FailedPrecondition(
                f"{self._partial} is shorter than the {journal.bytes:,} bytes that its journal counts; "
                "pass --restart to begin again"
            )
        if journal.crc32 not in {None, found.crc32}:
            raise FailedPrecondition(
                f"{self._partial} is damaged: its rows are not those that its journal counts; "
                "pass --restart to begin again"
            )
        return found.crc32

    def _describe(self) -> bytes:
        state = self._state
        journal = Journal(
            vectors=self._vectors,
            scale=self.scale,
            rows=state.rows,
            bytes=state.bytes,
            inputs_sha256=state.inputs.hexdigest(),
            crc32=state.crc32,
        )
        return msgspec.json.format(msgspec.json.encode(journal), indent=2) + b"\n"


def _open_locked(path: Path) -> IO[bytes]:
    try:
        stream = locks.hold(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    if stream is None:  # another run holds it, or just finished and renamed it
        raise FailedPrecondition(f"another `trimtab embed` is writing {path}; wait for its end")
    return stream


def _hash(inputs: Any, text: str) -> None:
    # The length distinguishes two texts from their concatenation.
    data = text.encode()
    inputs.update(len(data).to_bytes(8, "little"))
    inputs.update(data)
