"""Whether what was loaded is still what lies on disk: a bundle is never changed, but people copy over files.

What is loaded was read into memory, and goes on as it was whatever becomes of its files. But a restart would
not have it, so whoever asks for a load is told, and the log has it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.manifest import Manifest
from trimtab.errors import BundleError

Stamps: TypeAlias = Mapping[str, tuple[int, int, int]]


class OnDisk:
    """The versions that were loaded, and how their files looked then. For one thread at a time a version."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], Stamps] = {}

    def remember(self, manifest: Manifest, stamps: Stamps) -> None:
        """This version was loaded, of files that looked so before they were read."""
        self._seen[manifest.name, manifest.version] = stamps

    def compare(self, manifest: Manifest, path: Path) -> None:
        """Raise BundleError where the folder holds another bundle than this one, or a changed file.

        Files that look as they did are not read again.
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
    """How the files of a bundle look: none can be changed without one of these, not even to the same size."""
    names = [bundles.MANIFEST, *(file.path for file in manifest.files())]
    found = {name: (path / name).stat() for name in names}
    return {name: (each.st_ino, each.st_size, each.st_ctime_ns) for name, each in found.items()}
