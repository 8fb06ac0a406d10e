"""Checks that loaded bundles are still the same on disk: bundles must never change, but people overwrite
files.

A loaded bundle is in memory, and goes on whatever happens to its files. But it would be lost in a restart, so
whoever asks for a load is told, and it is logged.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.manifest import Manifest
from trimtab.errors import BundleError

Stamps: TypeAlias = Mapping[str, tuple[int, int, int]]


class OnDisk:
    """The loaded versions, and the stamps of their files at that time. For one thread at a time for each
    version."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], Stamps] = {}

    def remember(self, manifest: Manifest, stamps: Stamps) -> None:
        """This version was loaded from files that had these stamps before they were read."""
        self._seen[manifest.name, manifest.version] = stamps

    def compare(self, manifest: Manifest, path: Path) -> None:
        """Raise BundleError if the folder holds another bundle, or a changed file.

        Files with the same stamps are not read again.
        """
        key = manifest.name, manifest.version
        try:
            now = stamps(path, manifest)
            if now == self._seen.get(key):
                return
            if bundles.read(path).manifest != manifest:
                raise BundleError(f"{path} holds another bundle than the one that was loaded")
        except (OSError, BundleError) as error:
            raise BundleError(
                f"{manifest.name} version {manifest.version} was changed on disk, and goes on as it was "
                f"loaded: {error}. A version is never replaced: give the new bundle a number of its own, or "
                f"unload {manifest.name} and load it again"
            ) from None
        self._seen[key] = now


def stamps(path: Path, manifest: Manifest) -> Stamps:
    """The stamps of a bundle's files: no change, even to the same size, leaves them as they are."""
    names = [bundles.MANIFEST, *(file.path for file in manifest.files())]
    found = {name: (path / name).stat() for name in names}
    return {name: (each.st_ino, each.st_size, each.st_ctime_ns) for name, each in found.items()}
