"""What is in the folders of a repository: versions of encoders, and whether a folder is empty."""

from collections.abc import Mapping
from pathlib import Path

from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import bundle as bundles
from trimtab_server.catalog.served import Key


def found(repository: Path) -> tuple[Mapping[Key, Path], Mapping[str, str]]:
    """The versions on disk, by name and version, the oldest version of each name first; and which encoders'
    folders cannot be read, and why."""
    unreadable: dict[str, str] = {}
    versions = bundles.versions(repository, unreadable)
    return {(name, version): path for name, version, path in versions}, unreadable


def with_adapters(repository: Path) -> set[str]:
    """The encoders that have adapters, whether or not they have a version."""
    return set(adapters.encoders(repository))


def is_empty(folder: Path) -> bool:
    """Whether it is a folder with nothing in it."""
    return folder.is_dir() and not any(folder.iterdir())


def why_gone(repository: Path, name: str, version: int) -> str:
    """Why a version is no longer served."""
    if (repository / name / str(version)).is_dir():
        return "there are newer versions, and this server keeps as many as versions.newest says"
    return "it is gone from the repository"
