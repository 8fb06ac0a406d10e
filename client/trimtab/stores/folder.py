"""The files of a FAISS store. No crash and no failed write loses written data or leaves half of it.

    FOLDER/
        store.json         the catalogue: the space, the similarity, and the files of the generation N
        index-N-KEY.faiss  a FAISS index that keeps its vectors as they are
        rows-N-KEY.jsonl   {"id": ..., "text": ...}: a line for each row of the index
        log-N-KEY          what was written since, record by record
        lock               held by the process that writes

A write is one record at the end of the log, and is on the disk before the call returns. A record that a crash
cut off is ignored, and the next writer removes it. A new generation is written beside the old one and read
back before store.json, replaced atomically, names it. The previous generation is kept until the next: if the
current index does not match its checksum, the previous one and its log are used instead.

The KEY is random, made when Trimtab first writes into a folder, and recorded in the catalogue. Only files
with the key in their names are ever overwritten or deleted. All others belong to the user, including an index
that was taken over.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from trimtab.artifacts import durable, locks
from trimtab.artifacts.durable import Sum
from trimtab.errors import ConfigError, DamagedError, FailedPrecondition
from trimtab.kinds import Similarity
from trimtab.stores.base import Form
from trimtab.stores.faiss_log import Row, read_log

FORMAT = 2
CATALOGUE = "store.json"
_KEY = re.compile(r"[0-9a-f]{16}")
_LIKE_OURS = re.compile(r"index-.*\.faiss|rows-.*\.jsonl|log-.*")


class Generation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files that together hold all documents. Without an index, there are only logs, in order."""

    index: str | None = None
    rows: str | None = None
    logs: tuple[str, ...] = ()
    sums: dict[str, Sum] = {}

    @property
    def files(self) -> set[str]:
        """The names of all files."""
        return {name for name in (self.index, self.rows, *self.logs) if name is not None}


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """store.json. All names are of files in the same folder.

    index, rows: absent if there is none yet. logs: in the order of writing.
    sums: length and checksum of the files that Trimtab wrote.
    key: part of the names of Trimtab's own files; empty before it wrote any.
    former: the fallback if index or rows are damaged; together with `logs`, it is just as complete.
    """

    space: str | None = None
    dimensions: int
    similarity: Similarity = "cosine"
    index: str | None = None
    rows: str | None = None
    logs: tuple[str, ...] | None = None
    sums: dict[str, Sum] = {}
    generation: int = 0
    key: str = ""
    former: Generation | None = None
    format: int = 1

    @property
    def current(self) -> Generation:
        """The current generation."""
        logs = (f"log-{self.generation}",) if self.logs is None else self.logs
        return Generation(index=self.index, rows=self.rows, logs=logs, sums=self.sums)

    @property
    def generations(self) -> list[Generation]:
        """The ways to read all documents, best first."""
        if self.former is None:
            return [self.current]
        logs = self.former.logs + self.current.logs
        return [self.current, msgspec.structs.replace(self.former, logs=logs)]


class _Known(msgspec.Struct, frozen=True):
    """The part of store.json that every format has."""

    format: int = 1


def read_catalogue(folder: Path) -> Catalogue:
    """store.json. FileNotFoundError if there is none, ConfigError if it cannot be used."""
    path = folder / CATALOGUE
    try:
        content = path.read_bytes()
        _check_format(msgspec.json.decode(content, type=_Known).format, path)
        found = msgspec.json.decode(content, type=Catalogue)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if (found.index is None) != (found.rows is None) or (found.index is None and not found.key):
        raise ConfigError(f"{path} must name an index and its rows")
    if found.key and not _KEY.fullmatch(found.key):
        raise ConfigError(f"{path} has the key {found.key!r}, which Trimtab did not make; leave it out")
    if found.dimensions < 1:
        raise ConfigError(f"{path} says {found.dimensions} dimensions; vectors have 1 or more")
    for each in found.generations:
        if not each.logs:
            raise ConfigError(f"{path} names no log; leave out `logs`, or name one")
        for file in each.files:
            if not file.strip(".") or "\0" in file or Path(file).name != file:
                raise ConfigError(f"{path} names {file!r}, which is no file of the same folder")
    return found


def _check_format(format: int, path: Path) -> None:
    if not 1 <= format <= FORMAT:
        raise ConfigError(f"{path} is of format {format}, this Trimtab reads formats up to {FORMAT}")


def write_catalogue(folder: Path, catalogue: Catalogue) -> None:
    """Replace store.json atomically."""
    durable.replace(folder / CATALOGUE, msgspec.json.format(msgspec.json.encode(catalogue), indent=2) + b"\n")


def check_vacant(folder: Path, name: str) -> None:
    """FailedPrecondition if a folder without a catalogue has files that could be a store's."""
    there = sorted(path.name for path in folder.iterdir() if _LIKE_OURS.fullmatch(path.name))
    if there:
        raise FailedPrecondition(
            f"{name} has no {CATALOGUE}, but a file {there[0]!r}, which is not overwritten: name a new or "
            f"empty folder; to take over an index, write a {CATALOGUE} that names it"
        )


def empty(form: Form) -> Catalogue:
    """The catalogue of a store without documents."""
    key = secrets.token_hex(8)
    return Catalogue(
        space=form.space,
        dimensions=form.dimensions,
        similarity=form.similarity,
        logs=(log_name(0, key),),
        key=key,
        format=FORMAT,
    )


def taken_over(folder: Path, catalogue: Catalogue, current: Generation) -> Catalogue:
    """The catalogue for writing beside files that Trimtab does not own."""
    key, number = secrets.token_hex(8), catalogue.generation + 1
    # Earlier versions wrote a log without a key. A file with that name may also be someone else's.
    logs = [name for name in current.logs if next(read_log(folder / name, 0), None) is not None]
    return msgspec.structs.replace(
        catalogue,
        logs=(*logs, log_name(number, key)),
        sums=current.sums,
        generation=number,
        key=key,
        format=FORMAT,
    )


def index_name(generation: int, key: str) -> str:
    """The index of a generation."""
    return f"index-{generation}-{key}.faiss"


def rows_name(generation: int, key: str) -> str:
    """The rows of a generation."""
    return f"rows-{generation}-{key}.jsonl"


def log_name(generation: int, key: str) -> str:
    """The log that follows a generation."""
    return f"log-{generation}-{key}"


def sweep(folder: Path, catalogue: Catalogue) -> None:
    """Delete Trimtab's own files of obsolete generations. Only for the holder of the lock."""
    durable.sweep(folder)
    if not catalogue.key:
        return
    key = re.escape(catalogue.key)
    ours = re.compile(rf"index-\d+-{key}\.faiss|rows-\d+-{key}\.jsonl|log-\d+-{key}")
    named: set[str] = set().union(*(each.files for each in catalogue.generations))
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and path.name not in named:
            path.unlink()


Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Inode, length and modification time of a file, to notice a change. None if there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def checked(path: Path, sums: dict[str, Sum]) -> Iterator[IO[bytes]]:
    """A file, open at its beginning; DamagedError if its checksum in `sums` differs. Adds a missing one."""
    with path.open("rb") as stream:
        found = durable.sum_of(stream.fileno())
        if sums.setdefault(path.name, found) != found:
            raise DamagedError(
                f"{path} is damaged or was replaced: it has changed since {CATALOGUE} was written. "
                "Restore it from a copy"
            )
        yield stream


def read_rows(stream: IO[bytes]) -> list[Row]:
    """The lines of a file of rows; ConfigError names an invalid line."""
    decoder = msgspec.json.Decoder(Row)
    rows = []
    for number, line in enumerate(stream, 1):
        try:
            rows.append(decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{stream.name}, line {number}: {error}") from None
    return rows


def write_rows(path: Path, rows: list[Row]) -> Sum:
    """Write a file of rows durably. Returns its checksum."""
    encoder = msgspec.json.Encoder()
    with durable.replacing(path) as stream:
        for row in rows:
            stream.write(encoder.encode(row) + b"\n")
    return stream.sum


def lock(folder: Path, name: str) -> IO[bytes]:
    """The folder's lock, held until it is closed; FailedPrecondition if another process holds it."""
    stream = locks.hold(folder / "lock")
    if stream is None:
        raise FailedPrecondition(f"another process is writing {name}; wait for its end")
    return stream
