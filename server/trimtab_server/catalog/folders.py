"""What is in the folders of a repository: versions of encoders, and whether there is anything at all."""

from collections.abc import Mapping
from pathlib import Path

from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import bundle as bundles
from trimtab_server.catalog.served import Key


def found(repository: Path) -> tuple[Mapping[Key, Path], Mapping[str, str]]:
    """The versions on disk, by name and version, of each name the oldest first; and which folders of encoders
    cannot be read, and why."""
    unreadable: dict[str, str] = {}
    versions = bundles.versions(repository, unreadable)
    return {(name, version): path for name, version, path in versions}, unreadable


def with_adapters(repository: Path) -> set[str]:
    """The encoders that have adapters, whether or not they have a version."""
    return set(adapters.encoders(repository))


def is_empty(folder: Path) -> bool:
    """Whether there is such a folder with nothing in it."""
    return folder.is_dir() and not any(folder.iterdir())


def why_gone(repository: Path, name: str, version: int) -> str:
    """Why a version that was served is served no more."""
    if (repository / name / str(version)).is_dir():
        return "there are newer versions, and this server keeps as many as versions.newest says"
    return "it is gone from the repository"
