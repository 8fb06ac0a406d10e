"""Disks that are full, that lose what was written, and that change it later: a FAISS store loses nothing."""

import logging
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

import trimtab
from tests.client.stores.test_contract import FORM, rows
from tests.client.stores.test_faiss import log_of
from trimtab.artifacts import durable
from trimtab.stores import Store, create_store, faiss_store, folder, open_store
from trimtab.stores.faiss_store import FaissStore


def check(path: Path, count: int) -> None:
    """Documents 0 to count - 1 are there, each with its own vector and text."""
    with open_store(f"faiss:{path}") as store:
        assert store.count() == count
        found = store.get(list(range(count)))
    assert found.ids == list(range(count))
    for number in range(count):
        (vector,) = rows([number], seed=number).vectors
        np.testing.assert_allclose(found.vectors[number], vector, atol=1e-6)
        assert found.documents[number].text == f"text {number} of {number}"


def filled(path: Path, count: int) -> None:
    """A store of so many documents, all of them in the index."""
    with create_store(f"faiss:{path}", FORM) as store:
        for number in range(count):
            store.upsert(rows([number], seed=number))


def crash(store: Store) -> None:
    """End the writer: its lock goes, and nothing is written any more."""
    assert isinstance(store, FaissStore)
    store._release()


def write_limited(path: Path, limit: int, start: int) -> None:
    """Write where no file may be longer than `limit`; the exit status is the number of documents."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = start
    try:
        with open_store(f"faiss:{path}") as store:
            for number in range(start, start + 5):
                store.upsert(rows([number], seed=number))
                done += 1
    except trimtab.Unavailable as error:
        assert "make room on the disk" in str(error)
        os._exit(done)
    os._exit(100 + done)


def test_a_disk_that_is_full_at_any_byte(tmp_path: Path) -> None:
    """RLIMIT_FSIZE gives EFBIG where a full disk gives ENOSPC: in the log, the index, the rows."""
    filled(tmp_path, 10)
    context, count, ends = multiprocessing.get_context("fork"), 10, set()
    for limit in (150, 350, 500, 600, 700, 800, 1000, 1200, 1500, 9000):
        process = context.Process(target=write_limited, args=(tmp_path, limit, count))
        process.start()
        process.join(60)
        assert process.exitcode is not None
        ends.add(process.exitcode >= 100)
        count = process.exitcode % 100
        check(tmp_path, count)
        assert not list(tmp_path.glob("*.partial"))
    assert ends == {True, False}, "some were too full, and some were not"


def losing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on a new file loses its second half without an error, if it is to be called so."""
    fsync, opened = os.fsync, durable.open_partial
    lost: list[int] = []

    def open_partial(path: Path) -> object:
        fresh, stream = opened(path)
        lost.append(stream.fileno())
        return fresh, stream

    def silent(descriptor: int) -> None:
        if descriptor in lost[-1:] and name in expected[-1:]:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        fsync(descriptor)

    expected: list[str] = []
    replacing = durable.replacing

    def noted(path: Path) -> object:
        expected.append(path.name.partition("-")[0])
        return replacing(path)

    monkeypatch.setattr(durable, "open_partial", open_partial)
    monkeypatch.setattr(durable, "replacing", noted)
    monkeypatch.setattr(os, "fsync", silent)


@pytest.mark.parametrize("file", ["index", "rows", "store.json"])
def test_a_write_that_was_lost_without_an_error(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 5)
    before = folder.read_catalogue(tmp_path)
    store = open_store(f"faiss:{tmp_path}")
    store.upsert(rows([5], seed=5))
    with monkeypatch.context() as patch:
        losing(patch, file)
        with pytest.raises(trimtab.Unavailable, match="reading them back gives"):
            store.close()
    assert folder.read_catalogue(tmp_path) == before
    check(tmp_path, 6)


@pytest.mark.parametrize("file", ["index", "rows"])
@pytest.mark.parametrize("how", ["cut", "zeros", "flipped", "gone"])
def test_the_generation_before_takes_the_place_of_a_damaged_one(
    tmp_path: Path, file: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, 5)
    with open_store(f"faiss:{tmp_path}") as store:
        store.upsert(rows([5], seed=5))  # in the log of the former generation
    store = open_store(f"faiss:{tmp_path}")
    store.upsert(rows([6], seed=6))  # in the log of this one
    path = tmp_path / str(getattr(folder.read_catalogue(tmp_path), file))
    content = path.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "zeros": bytes(len(content)),
        "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    }
    path.unlink() if how == "gone" else path.write_bytes(damaged[how])
    with caplog.at_level(logging.WARNING):
        check(tmp_path, 7)
    assert "the generation before it is read instead" in caplog.text and path.name in caplog.text
    crash(store)
    with open_store(f"faiss:{tmp_path}") as store:
        store.upsert(rows([7], seed=7))
    caplog.clear()
    check(tmp_path, 8)
    assert not caplog.text, "the next generation is whole"
    assert not path.exists()


@pytest.mark.parametrize("tail", [b"\0" * 8, b"\0" * 5000, b"\0" * 3, b"\xff" * 300, b"\x09\0\0\0" * 30])
def test_a_tail_of_a_log_that_is_no_record(tmp_path: Path, tail: bytes) -> None:
    """After a power cut there may be zeros, or anything, where the last record was to be."""
    filled(tmp_path, 3)
    store = open_store(f"faiss:{tmp_path}")
    store.upsert(rows([3], seed=3))
    log = log_of(tmp_path)
    with log.open("ab") as stream:
        stream.write(tail)
    check(tmp_path, 4)
    crash(store)
    with open_store(f"faiss:{tmp_path}") as store:
        store.upsert(rows([4], seed=4))
    check(tmp_path, 5)


@pytest.mark.parametrize("byte", [0, 3, 4, 8, 30])
def test_a_record_that_is_damaged_is_not_the_end(tmp_path: Path, byte: int) -> None:
    """Not even where its length is: what comes behind it was written, and is not forgotten."""
    filled(tmp_path, 1)
    store = open_store(f"faiss:{tmp_path}")
    ends = [0]
    for number in range(1, 4):
        store.upsert(rows([number], seed=number))
        ends.append(log_of(tmp_path).stat().st_size)
    log, content = log_of(tmp_path), bytearray(log_of(tmp_path).read_bytes())
    content[ends[1] + byte] ^= 0x41
    log.write_bytes(content)
    with pytest.raises(trimtab.FailedPrecondition, match=f"damaged at byte {ends[1]}"):
        open_store(f"faiss:{tmp_path}")
    content[ends[1] + byte] ^= 0x41
    log.write_bytes(content)
    store.close()
    check(tmp_path, 4)


@pytest.mark.parametrize("where", ["faiss_store.LogWriter", "folder.sweep"])
def test_an_end_after_the_catalogue_was_replaced(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written afterwards goes where the catalogue says by now."""
    filled(tmp_path, 3)
    store = open_store(f"faiss:{tmp_path}")
    store.upsert(rows([3], seed=3))

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"trimtab.stores.{where}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.close()
    store.upsert(rows([4], seed=4))
    check(tmp_path, 5)
    store.close()
    check(tmp_path, 5)


def test_nothing_is_left_of_a_write_that_failed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"as it was")
    with pytest.raises(ValueError, match="in the middle"), durable.replacing(tmp_path / "file") as stream:
        stream.write(b"some of it")
        raise ValueError("in the middle")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"as it was"


def test_temporary_files_that_are_being_written_are_not_swept(tmp_path: Path) -> None:
    left = tmp_path / f".trimtab-{'a' * 32}.partial"
    left.write_bytes(b"left by a crash")
    with durable.replacing(tmp_path / "file") as stream:
        stream.write(b"whole")
        durable.sweep(tmp_path)
        assert not left.exists()
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_folder_of_qdrant_that_is_not(tmp_path: Path) -> None:
    for content in ("{}", "not JSON", "[]", '{"collections": 3}'):
        (tmp_path / "meta.json").write_text(content)
        with pytest.raises(trimtab.ConfigError, match=r"meta\.json was not written by Qdrant"):
            create_store(f"qdrant:{tmp_path}#docs", FORM)
        assert (tmp_path / "meta.json").read_text() == content
    (tmp_path / "meta.json").write_bytes(b"")  # what a kill at the very beginning leaves
    with create_store(f"qdrant:{tmp_path}#docs", FORM) as store:
        assert store.count() == 0


def test_qdrant_on_a_full_disk(tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'store'}#docs"
    with create_store(url, FORM, example=0) as store:
        store.upsert(rows([1, 2]))

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            with open_store(url) as store:
                store.upsert(rows(list(range(10, 200))))
        except trimtab.Unavailable as error:
            os._exit(7 if "check the disk" in str(error) else 8)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join(60)
    assert process.exitcode == 7
    with open_store(url) as store:
        assert store.get([1, 2]).ids == [1, 2]
        store.upsert(rows([3]))


def test_a_write_longer_than_a_record_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_store, "MOST_AT_ONCE", 1000)
    with create_store(f"faiss:{tmp_path}", FORM) as store:
        store.upsert(rows(list(range(10))))
        with pytest.raises(trimtab.InvalidArgument, match="takes 1,000 at once; write fewer"):
            store.upsert(rows(list(range(50)), seed=1))
        assert store.texts([0, 40]) == {0: "text 0 of 0"}
