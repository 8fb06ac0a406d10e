"""Files that one process at a time may hold."""

import os
from pathlib import Path

import pytest

from trimtab.artifacts import locks


def test_a_file_is_held_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = locks.hold(path)
    assert held is not None and locks.hold(path) is None
    held.write(b"kept")
    held.close()
    again = locks.hold(path)
    assert again is not None and again.read() == b"kept"
    again.close()


def test_a_file_whose_holder_deleted_it_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opened while it was there, and locked when it had gone: nobody else would find it."""
    path, opened = tmp_path / "lock", os.open

    def deleting(name: Path, *flags: int) -> int:
        descriptor = opened(name, *flags)
        path.unlink()
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", deleting)
        assert locks.hold(path) is None
    held = locks.hold(path)
    assert held is not None
    held.close()


def test_a_file_that_was_replaced_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = tmp_path / "lock", os.open

    def replacing(name: Path, *flags: int) -> int:
        descriptor = opened(name, *flags)
        (tmp_path / "other").write_bytes(b"")
        (tmp_path / "other").replace(path)
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", replacing)
        assert locks.hold(path) is None


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        locks.hold(tmp_path / "nowhere" / "lock")
