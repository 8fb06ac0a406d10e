"""Bundles are published whole or not at all.

An export works in REPOSITORY/NAME/.VERSION.partial and renames that folder once everything in it is on disk.
Readers of a repository look only at folders named by a number. A lock next to it keeps out a second export of
the same version. The kernel releases the lock when the process dies, however it dies, so the next export
replaces the remains of a killed one.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trimtab.artifacts import artifact, durable, locks
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import manifest as manifests
from trimtab.artifacts.contradictions import contradiction
from trimtab.errors import AdapterError, BundleError, ExportError, TrimtabError


@dataclass(frozen=True)
class Staged:
    """A version in the making: its current folder, a scratch folder, and its final folder."""

    folder: Path
    work: Path
    target: Path
    version: int


@contextmanager
def staged(repository: Path, name: str, version: int | None) -> Iterator[Staged]:
    """The folder to build a version in; published when the block ends, removed when it raises.

    Args:
        repository: created if missing.
        name: the encoder's name, a folder of the repository.
        version: an unused number; None: the last one plus 1, or 1 for a new encoder.

    Raises:
        ExportError: the version exists, or another process is exporting it.
    """
    encoder = repository / bundles.check_name(name)
    made = [folder for folder in (encoder, repository) if not folder.exists()]
    number = version if version is not None else next_version(encoder)
    target, folder = encoder / str(number), encoder / f".{number}.partial"
    _refuse_existing(encoder, number)
    try:
        busy = f"another process is exporting {name} version {number}: wait for it, or give another --version"
        with lock(encoder / f".{number}.lock", ExportError(busy)):
            _refuse_existing(encoder, number)  # again: the lock's last holder may have finished it
            shutil.rmtree(folder, ignore_errors=True)
            work = folder / ".work"
            work.mkdir(parents=True)
            try:
                yield Staged(folder=folder, work=work, target=target, version=number)
                shutil.rmtree(work)
                publish(folder, target, bundles.read)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except BaseException:
        for empty in made:
            with suppress(OSError):
                empty.rmdir()
        raise


def next_version(encoder: Path) -> int:
    """The number after the encoder's last version; 1 if there is none."""
    entries = encoder.iterdir() if encoder.is_dir() else ()
    return max((int(entry.name) for entry in entries if bundles.VERSION.fullmatch(entry.name)), default=0) + 1


def entry(folder: Path, path: Path) -> artifact.File:
    """The manifest's entry of a file of the bundle in `folder`."""
    return msgspec.structs.replace(artifact.digest(path), path=path.relative_to(folder).as_posix())


def manifest(folder: Path, content: manifests.Manifest) -> None:
    """Write manifest.json. Raises ExportError if a server would refuse it."""
    text = encoded(content, ExportError)
    if wrong := contradiction(content):
        raise ExportError(f"this encoder cannot be served: its manifest {wrong}")
    (folder / bundles.MANIFEST).write_bytes(text)


def encoded(content: msgspec.Struct, error: type[TrimtabError]) -> bytes:
    """A manifest as written to its file; `error` if a number in it is out of range."""
    text = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
    try:
        msgspec.json.decode(text, type=type(content))
    except msgspec.MsgspecError as wrong:
        raise error(f"this cannot be served, and was not written: in its manifest, {wrong}") from None
    return text


def publish(folder: Path, target: Path, read: Callable[[Path], object]) -> None:
    """Rename a finished folder, once everything in it is on disk and was read back by `read`."""
    durable.settle_all(folder)
    try:
        read(folder)
    except (BundleError, AdapterError) as error:
        raise ExportError(f"what was written does not read back, check the disk: {error}") from None
    folder.rename(target)
    durable.sync(target.parent)


def _refuse_existing(encoder: Path, number: int) -> None:
    if (encoder / str(number)).exists():
        raise ExportError(
            f"version {number} of {encoder.name} exists, and a bundle is never changed: "
            f"the next free one is --version {next_version(encoder)}"
        )


@contextmanager
def lock(path: Path, busy: TrimtabError) -> Iterator[None]:
    """Hold the lock file, which is there only as long as it is held; raise `busy` where another holds it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = locks.hold(path)
        except FileNotFoundError:  # a failed export of this encoder has just removed its folder
            continue
        if held is not None:
            break
        if path.exists():  # otherwise its last holder removed it just now: try again
            raise busy
    with held:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
