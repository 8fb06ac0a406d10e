"""Bundles: immutable folders that the exporter writes and the server reads.

    REPOSITORY/NAME/VERSION/
        manifest.json     describes the bundle: see trimtab.artifacts.manifest
        tokenizer.json    a `tokenizers` file, without truncation and padding
        fp32/model.onnx   one folder per variant, with its weights beside the graph

The manifest names every file with its SHA-256 and its size, and files are checked when the bundle is read.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from trimtab.artifacts.artifact import File, Kind, Struct, Trusted
from trimtab.artifacts.contradictions import contradiction
from trimtab.artifacts.manifest import FORMAT, Manifest
from trimtab.errors import BundleError, InvalidArgument

MANIFEST = "manifest.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")


class Bundle(Struct, frozen=True):
    """A bundle on disk."""

    path: Path
    manifest: Manifest

    def file(self, file: File) -> Path:
        """The absolute path of one of the bundle's files."""
        return self.path / file.path


BUNDLE = Kind(
    one="a bundle",
    noun="the bundle",
    manifest_name=MANIFEST,
    format=FORMAT,
    error=BundleError,
    make="trimtab export",
    redo="export it again",
)


def check_name(name: str) -> str:
    """`name` if it can name an encoder: it becomes a folder, a metric label and a part of URLs."""
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            f"encoder name {name!r} cannot be used: lower-case letters, digits, '.', '_' and '-', "
            "a letter or digit first, at most 128"
        )
    return name


def read(
    path: Path, *, verify: bool = True, within: Path | None = None, trusted: Trusted | None = None
) -> Bundle:
    """Read the bundle in the folder `path`; with `verify`, hash every file it names.

    Raises BundleError, which names the file and says what to do, if the folder is not a complete, unchanged
    bundle, leads out of the folder `within`, or has a manifest that is not `trusted`.
    """
    manifest = BUNDLE.manifest(path, Manifest, within=within, trusted=trusted)
    if wrong := contradiction(manifest):
        raise BundleError(f"{path / MANIFEST} {wrong}. Copy it again, or export the encoder again")
    for file in manifest.files():
        BUNDLE.check(path, file, verify)
    return Bundle(path=path, manifest=manifest)


def versions(repository: Path, unreadable: dict[str, str] | None = None) -> Iterator[tuple[str, int, Path]]:
    """Every (name, version, folder) of a repository, in order; folders with other names are not bundles.

    If an encoder's folder cannot be read, `unreadable` gets its name with the reason; if `unreadable` is
    None, BundleError is raised.
    """
    if not repository.is_dir():
        raise BundleError(f"the repository {repository} is not a folder")
    for encoder in sorted(repository.iterdir()):
        if not NAME.fullmatch(encoder.name):
            continue
        try:
            names = [entry.name for entry in encoder.iterdir()] if encoder.is_dir() else []
        except OSError as error:
            why = f"{encoder} cannot be read: {error.strerror}"
            if unreadable is None:
                raise BundleError(why) from None
            unreadable[encoder.name] = why
            continue
        for number in sorted(int(name) for name in names if VERSION.fullmatch(name)):
            yield encoder.name, number, encoder / str(number)
