"""Artifacts: immutable folders with a manifest (bundles, adapters), and the errors for damaged ones."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from trimtab.artifacts import ranges, reading
from trimtab.errors import TrimtabError

# A bundle's manifest takes some kilobytes per variant.
MOST_MANIFEST_BYTES = 16 << 20


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all parts of a manifest."""


class File(Struct, frozen=True):
    """A file of the folder: its path relative to the manifest, its digest, its size in bytes."""

    path: ranges.Path
    sha256: ranges.Sha256
    size: ranges.Bytes


class Interval(Struct, frozen=True):
    """A figure with its 95% interval, by resampling the queries."""

    value: ranges.Figure
    low: ranges.Figure
    high: ranges.Figure

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"an interval goes from low to high, not from {self.low} to {self.high}")


def provisional(why: str) -> str:
    """How a verdict that nothing may rely on is reported, for variants and adapters alike.

    A verdict is reliable if the data that judged was left out of the making: whole kinds of text, or pairs
    that say which document is right.
    """
    return f"provisional: {why}"


class Versioned(Protocol):
    """A manifest, which states its format."""

    @property
    def format(self) -> int: ...


class _Header(msgspec.Struct):
    """The part of a manifest that every format has."""

    format: int


AnyManifest = TypeVar("AnyManifest", bound=Versioned)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of artifact, with the words and the error class for its faults."""

    one: str  # as messages call it: "a bundle"
    noun: str  # "the bundle"
    manifest_name: str
    format: int
    error: type[TrimtabError]
    make: str  # the command that makes one
    redo: str  # how to make it again: "export it again"

    def manifest(
        self,
        folder: Path,
        type: type[AnyManifest],
        *,
        within: Path | None = None,
        trusted: "Trusted | None" = None,
    ) -> AnyManifest:
        """The manifest of a folder, read and decoded."""
        content = self.manifest_bytes(folder, within)
        if trusted is not None:
            trusted(self, folder, content)
        return self.decode(folder, content, type)

    def manifest_bytes(self, folder: Path, within: Path | None = None) -> bytes:
        """The manifest of a folder, which must be inside `within`; the kind's error if it cannot be read."""
        if within is not None and not folder.resolve().is_relative_to(within.resolve()):
            raise self.error(f"{folder} is a link that leads out of the repository: put {self.noun} into it")
        try:
            return self.small_file(folder, self.manifest_name, MOST_MANIFEST_BYTES)
        except FileNotFoundError:
            raise self.error(
                f"{folder} is not {self.one}: it has no {self.manifest_name}. Make one with `{self.make}`"
            ) from None

    def decode(self, folder: Path, content: bytes, type: type[AnyManifest]) -> AnyManifest:
        """A folder's manifest; the kind's error if it has another format or an invalid value."""
        path = folder / self.manifest_name
        try:
            found = msgspec.json.decode(content, type=_Header).format
            if found != self.format:
                raise self.error(
                    f"{path} is of format {found}, this Trimtab reads format {self.format}: "
                    f"{self.redo} with this version (`{self.make}`)"
                )
            return msgspec.json.decode(content, type=type)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self.error(f"{path} cannot be read: {error}. Copy it, or {self.redo}") from None

    def check(self, folder: Path, file: File, verify: bool) -> None:
        """Raise the kind's error if a file that the manifest names is missing or was changed."""
        with self._told(folder, file):
            reading.check(folder, file.path, file.size, file.sha256 if verify else None)

    def content(self, folder: Path, file: File) -> bytearray:
        """The content of a file that the manifest names; the kind's error if it was changed."""
        with self._told(folder, file):
            return reading.content(folder, file.path, file.size, file.sha256)

    def small_file(self, folder: Path, name: str, most: int) -> bytes:
        """The content of a file that no manifest names. FileNotFoundError if there is none."""
        with self._told(folder):
            return reading.small(folder, name, most)

    @contextmanager
    def _told(self, folder: Path, file: File | None = None) -> Iterator[None]:
        if file is not None and (file.path.startswith("/") or ".." in file.path.split("/")):
            raise self.error(
                f"{folder / self.manifest_name} names {file.path!r}, which lies outside {self.noun}"
            )
        try:
            yield
        except reading.UnreadableError as error:
            raise self.error(f"{error}. Copy {self.noun} again, or {self.redo}") from None


# Raises the kind's error unless this content of a folder's manifest is trusted.
Trusted = Callable[[Kind, Path, bytes], None]


def digest(path: Path) -> File:
    """The manifest's entry for a file, with its path as given."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(path=path.as_posix(), sha256=sha256, size=path.stat().st_size)
