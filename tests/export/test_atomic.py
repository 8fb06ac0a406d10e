"""A version appears whole or not at all, whatever happens while it is made."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_encoders import Export

from trimtab.artifacts import bundle as bundles
from trimtab.errors import BundleError, ExportError
from trimtab_export import evaluate, write

COMMAND = (
    "import argparse, sys\n"
    "from trimtab_export import cli\n"
    "parser = argparse.ArgumentParser()\n"
    "cli.configure(parser)\n"
    "sys.exit(cli.run(parser.parse_args(sys.argv[1:])))"
)


def started(source: Path, repository: Path, until: str) -> subprocess.Popen[str]:
    """A real export in a process of its own, which has come to the step `until`."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(source), "--name", "tiny", "--repository", str(repository)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    seen = ""
    while until not in seen:
        character = process.stderr.read(1)
        assert character, seen
        seen += character
    return process


def test_terminated(minilm_source: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    process = started(minilm_source, repository, until="[5/9]")
    assert (repository / "tiny" / ".1.partial" / "fp32" / "model.onnx").is_file()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM
    assert not repository.exists()


def test_another_at_the_same_time_and_killed(
    minilm_source: Path, st_bert: Path, tmp_path: Path, export: Export
) -> None:
    repository = tmp_path / "repository"
    process = started(minilm_source, repository, until="[5/9]")
    try:
        with pytest.raises(ExportError, match=r"another process is exporting tiny version 1"):
            export(st_bert, repository=repository)
    finally:
        process.kill()
        process.communicate(timeout=240)
    left = repository / "tiny" / ".1.partial"
    assert (left / "fp32" / "model.onnx").is_file()
    assert list(bundles.versions(repository)) == []
    with pytest.raises(bundles.BundleError):
        bundles.read(left)

    bundle = export(st_bert, repository=repository)
    assert bundles.read(bundle).manifest.dimensions == 32
    assert [path.name for path in bundle.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ExportError("no")])
def test_interrupted(
    error: BaseException, st_bert: Path, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(evaluate, "measure_speed", fail)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        export(st_bert)
    assert not (tmp_path / "repository").exists()


def test_a_failing_export_leaves_other_versions_alone(bert: Path, st_bert: Path, export: Export) -> None:
    first = export(st_bert)
    with pytest.raises(ExportError):
        export(bert)  # no pooling
    assert [path.name for path in first.parent.iterdir()] == ["1"]
    bundles.read(first)


def test_existing_version(st_bert: Path, export: Export) -> None:
    first = export(st_bert)
    before = (first / bundles.MANIFEST).read_bytes()
    export(st_bert, "--version", "7")
    with pytest.raises(ExportError, match=r"version 1 of tiny exists.* the next free one is --version 8"):
        export(st_bert, "--version", "1")
    assert (first / bundles.MANIFEST).read_bytes() == before
    export(st_bert)
    assert [number for _, number, _ in bundles.versions(first.parent.parent)] == [1, 7, 8]


def test_an_empty_folder_is_a_version_too(tmp_path: Path) -> None:
    """os.rename would replace it."""
    (tmp_path / "tiny" / "1").mkdir(parents=True)
    with pytest.raises(ExportError, match=r"version 1 of tiny exists"), write.staged(tmp_path, "tiny", 1):
        pass


def test_version_made_while_waiting_for_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is looked for again under the lock."""
    lock = os.open

    def finish_first(path: Path, *options: int, **more: int) -> int:
        if Path(path).name == ".1.lock":
            (tmp_path / "tiny" / "1").mkdir(exist_ok=True)
        return lock(path, *options, **more)

    monkeypatch.setattr(os, "open", finish_first)
    with pytest.raises(ExportError, match=r"version 1 of tiny exists"), write.staged(tmp_path, "tiny", 1):
        pass


def test_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a file that has no name any more keeps nobody out."""
    opened: list[Path] = []
    lock = os.open

    def remove_first(path: Path, *options: int, **more: int) -> int:
        handle = lock(path, *options, **more)
        if Path(path).name == ".1.lock":
            opened.append(path)
            if len(opened) == 1:
                path.unlink()
        return handle

    monkeypatch.setattr(os, "open", remove_first)
    monkeypatch.setattr(bundles, "read", lambda folder: None)  # there is none in it
    with write.staged(tmp_path, "tiny", 1) as stage:
        assert len(opened) == 2
        with (
            pytest.raises(ExportError, match=r"another process is exporting"),
            write.staged(tmp_path, "tiny", 1),
        ):
            pass
        (stage.folder / "file").touch()
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["1"]


def test_repository_is_made_only_for_a_bundle(tmp_path: Path) -> None:
    repository = tmp_path / "a" / "repository"
    (tmp_path / "a").mkdir()
    with pytest.raises(RuntimeError), write.staged(repository, "tiny", None):
        raise RuntimeError
    assert not repository.exists()
    repository.mkdir()
    with pytest.raises(RuntimeError), write.staged(repository, "tiny", None):
        raise RuntimeError
    assert list(repository.iterdir()) == []
    shutil.rmtree(repository)


def test_a_folder_that_does_not_read_back_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses what it was given is noticed before the folder has its name."""
    folder, target = tmp_path / ".1.partial", tmp_path / "1"
    folder.mkdir()
    (folder / "weights").write_bytes(b"whole")
    fsync = os.fsync

    def losing(descriptor: int) -> None:
        (folder / "weights").write_bytes(b"")
        fsync(descriptor)

    def read(path: Path) -> None:
        if (path / "weights").read_bytes() != b"whole":
            raise BundleError("weights: not what the manifest says")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", losing)
        with pytest.raises(ExportError, match="does not read back, check the disk: weights"):
            write.publish(folder, target, read)
    assert not target.exists()
    (folder / "weights").write_bytes(b"whole")
    write.publish(folder, target, read)
    assert (target / "weights").read_bytes() == b"whole"
