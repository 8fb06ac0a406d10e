"""An adapter is published whole or not at all. Until then, computed vectors are kept for the next attempt.

REPOSITORY/ENCODER/adapters/.NAME.partial/cache     vectors, kept for the next fit if this one stops
REPOSITORY/ENCODER/adapters/.NAME.partial/adapter   becomes REPOSITORY/ENCODER/adapters/NAME
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trimtab.artifacts import adapter as adapters
from trimtab.artifacts.bundle import check_name
from trimtab.errors import AdapterError
from trimtab_export import write


@dataclass(frozen=True, slots=True)
class StagedAdapter:
    """An adapter in the making."""

    folder: Path
    cache: Path
    target: Path

    def publish(self, manifest: adapters.AdapterManifest) -> None:
        """Write the manifest, and rename the folder. AdapterError if a server would refuse it."""
        (self.folder / adapters.MANIFEST).write_bytes(write.encoded(manifest, AdapterError))
        write.publish(self.folder, self.target, adapters.read)


@contextmanager
def staged(encoder: Path, name: str) -> Iterator[StagedAdapter]:
    """The working folders for fitting an adapter of the encoder; removed once it is published.

    Raises AdapterError if an adapter of this name exists, or another process is fitting it.
    """
    parent = encoder / adapters.FOLDER
    target, partial = parent / check_name(name), parent / f".{name}.partial"

    def refuse_existing() -> None:
        if target.exists():
            raise AdapterError(f"{target} exists, and an adapter is never changed: give another --name")

    refuse_existing()
    busy = AdapterError(f"another process is fitting {target}: wait for it, or give another --name")
    with write.lock(parent / f".{name}.lock", busy):
        refuse_existing()
        stage = StagedAdapter(folder=partial / "adapter", cache=partial / "cache", target=target)
        shutil.rmtree(stage.folder, ignore_errors=True)
        stage.folder.mkdir(parents=True)
        yield stage
        if target.exists():
            shutil.rmtree(partial)
