"""What only a FAISS folder has: a log that crashes cut off, one writer, indexes from elsewhere."""

import multiprocessing
import shutil
import tempfile
from pathlib import Path
from typing import Any

import faiss
import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import trimtab
from tests.client.stores.test_contract import FORM, D, rows
from trimtab.stores import Document, Form, Id, Rows, create_store, faiss_contents, folder, open_store


def log_of(store: Path) -> Path:
    """The log that is written now."""
    return store / folder.read_catalogue(store).current.logs[-1]


def test_a_log_cut_off_at_any_byte(tmp_path: Path) -> None:
    """Whatever a crash left of the log, whole writes are there, others are not, and writing goes on."""
    whole = tmp_path / "whole"
    store = create_store(f"faiss:{whole}", FORM)
    ends, log = [0], log_of(whole)
    for number in range(4):
        store.upsert(rows([number], seed=number))
        ends.append(log.stat().st_size)
    store.delete([0])
    ends.append(log.stat().st_size)
    counts = [0, 1, 2, 3, 4, 3]
    data = log.read_bytes()
    cut = tmp_path / "cut"
    for length in range(0, len(data) + 1, 7):
        shutil.copytree(whole, cut)
        (cut / log.name).write_bytes(data[:length])
        expected = counts[max(place for place, end in enumerate(ends) if end <= length)]
        with open_store(f"faiss:{cut}") as found:
            assert found.count() == expected
            found.upsert(rows([100]))
        with open_store(f"faiss:{cut}") as found:
            assert found.count() == expected + 1
            assert found.get([100]).ids == [100]
        shutil.rmtree(cut)
    store.close()


def test_a_log_that_is_damaged_within(tmp_path: Path) -> None:
    with create_store(f"faiss:{tmp_path}", FORM) as store:
        store.upsert(rows([1]))
        store.upsert(rows([2]))
        log = log_of(tmp_path)
        data = bytearray(log.read_bytes())
        data[20] ^= 1
        log.write_bytes(data)
        with pytest.raises(trimtab.FailedPrecondition, match="damaged at byte 0"):
            open_store(f"faiss:{tmp_path}")
        data[20] ^= 1
        log.write_bytes(data)


def test_the_log_becomes_part_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_contents, "LEAST_COMPACTED", 10)
    with create_store(f"faiss:{tmp_path}", FORM) as store, open_store(f"faiss:{tmp_path}") as reader:
        generations = set()
        for number in range(60):
            store.upsert(rows([number], seed=number))
            if number % 3 == 0:
                store.delete([number])
            generations.add(folder.read_catalogue(tmp_path).generation)
            assert reader.count() == store.count()
            query = rows([number], seed=number).vectors[0]
            assert reader.search(query, 5) == store.search(query, 5)
        assert len(generations) >= 3, "it grew by itself"
    assert not log_of(tmp_path).stat().st_size
    assert len(list(tmp_path.glob("index-*"))) == len(list(tmp_path.glob("rows-*"))) == 2, "one for safety"
    with open_store(f"faiss:{tmp_path}") as store:
        assert [document.id for page in store.pages(9) for document in page] == [
            number for number in range(60) if number % 3
        ]


def test_a_crash_while_the_index_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue is what counts: until it is replaced, all is as it was."""
    store = create_store(f"faiss:{tmp_path}", FORM)
    store.upsert(rows([1, 2, 3]))

    def crash(*arguments: object) -> None:
        raise OSError(5, "the disk is gone")

    for step in ("write_rows", "write_catalogue"):
        monkeypatch.setattr(folder, step, crash)
        with pytest.raises(trimtab.Unavailable, match="the disk is gone"):
            store.close()
        monkeypatch.undo()
        with open_store(f"faiss:{tmp_path}") as store:
            assert store.count() == 3
            store.upsert(rows([4]))
            store.delete([4])
            store = open_store(f"faiss:{tmp_path}")
        store.upsert(rows([1]))
    store.close()
    left = [tmp_path / folder.index_name(99, folder.read_catalogue(tmp_path).key)]
    left.append(tmp_path / f".trimtab-{'0' * 32}.partial")
    for path in left:
        path.write_text("of another generation, left by a crash")
    with open_store(f"faiss:{tmp_path}") as store:
        assert store.get([3, 2, 1]).ids == [3, 2, 1]
        store.delete([1])
        assert not any(path.exists() for path in left)


def _write_until_killed(url: str, started: "multiprocessing.synchronize.Event") -> None:
    with open_store(url) as store:
        for number in range(10_000):
            store.upsert(rows([number], seed=number))
            started.set()


def test_one_process_writes_and_others_read(tmp_path: Path) -> None:
    url = f"faiss:{tmp_path}"
    create_store(url, FORM).close()
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_write_until_killed, args=(url, started), daemon=True)
    process.start()
    try:
        assert started.wait(60)
        with open_store(url) as reader:
            assert reader.count() >= 1
            with pytest.raises(trimtab.FailedPrecondition, match="another process is writing"):
                reader.upsert(rows([1]))
            seen = reader.count()
            while reader.count() < seen + 20:
                pass
    finally:
        process.kill()
        process.join()
        process.close()
    with open_store(url) as store:
        survived = store.count()
        assert store.get([survived - 1]).ids == [survived - 1]
        store.upsert(rows(["mine"]))
        assert store.count() == survived + 1


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat"])
@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
def test_an_index_from_elsewhere(tmp_path: Path, factory: str, metric: int) -> None:
    written = rows(list(range(200)))
    index = faiss.index_factory(D, factory, metric)
    index.train(written.vectors)
    index.add(written.vectors)
    faiss.write_index(index, str(tmp_path / "my.index"))
    index = faiss.read_index(str(tmp_path / "my.index"))
    lines = [
        msgspec.json.encode({"id": document.id, "text": document.text}) for document in written.documents
    ]
    (tmp_path / "my.jsonl").write_bytes(b"\n".join(lines))
    catalogue = {
        "space": "s",
        "dimensions": D,
        "similarity": "cosine",
        "index": "my.index",
        "rows": "my.jsonl",
    }
    (tmp_path / "store.json").write_bytes(msgspec.json.encode(catalogue))
    with open_store(f"faiss:{tmp_path}") as store:
        assert store.form == Form(space="s", dimensions=D)
        for number in (0, 77, 199):
            (hit,) = store.search(written.vectors[number], 1)
            assert hit.id == number and hit.score == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(store.get([5]).vectors, written.vectors[5:6], atol=1e-6)
        store.upsert(rows([7, 300], seed=1))
    with open_store(f"faiss:{tmp_path}") as store:
        assert store.count() == 201
        written = faiss.read_index(str(tmp_path / str(folder.read_catalogue(tmp_path).index)))
        assert type(written) is type(index), "of the same kind"
        assert store.search(rows([7, 300], seed=1).vectors[0], 1)[0].id == 7


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    good = {"space": "s", "dimensions": D, "similarity": "dot", "index": "i", "rows": "r"}
    index = faiss.IndexFlatIP(D)
    index.add(np.ones((2, D), np.float32))
    faiss.write_index(index, str(tmp_path / "i"))
    mapped = faiss.IndexIDMap(faiss.IndexFlatIP(D))
    mapped.add_with_ids(np.ones((2, D), np.float32), np.array([5, 6]))
    faiss.write_index(mapped, str(tmp_path / "mapped"))
    (tmp_path / "r").write_bytes(b'{"id": 1}\n{"id": 2, "text": "two"}\n')
    (tmp_path / "one").write_bytes(b'{"id": 1}\n')
    (tmp_path / "twice").write_bytes(b'{"id": 1}\n{"id": 1}\n')
    (tmp_path / "odd").write_bytes(b'{"id": 1}\n{"id": [2]}\n')
    (tmp_path / "text").write_text("no index")

    def refused(message: str, **changes: object) -> None:
        (tmp_path / "store.json").write_bytes(msgspec.json.encode({**good, **changes}))
        with pytest.raises(trimtab.TrimtabError, match=message):
            open_store(f"faiss:{tmp_path}")

    refused("1 lines for the 2 rows", rows="one")
    refused("id twice", rows="twice")
    refused("odd, line 2", rows="odd")
    refused("no FAISS index", index="text")
    refused("IndexIDMap", index="mapped")
    refused("missing", index="nowhere")
    refused("missing", rows="nowhere")
    refused("same folder", index="../i")
    refused("same folder", rows="/etc/passwd")
    refused("has 8 dimensions", dimensions=9)
    refused("length 2.83", similarity="cosine")
    refused("format 3", format=3)
    refused("unknown field", colour="red")
    refused("Invalid enum value", similarity="nearness")
    (tmp_path / "store.json").write_bytes(msgspec.json.encode(good))
    with open_store(f"faiss:{tmp_path}") as store:
        assert store.texts([1, 2]) == {1: None, 2: "two"}


def test_many_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with create_store(f"faiss:{tmp_path}", FORM) as store, ThreadPoolExecutor(4) as pool:

        def work(number: int) -> None:
            store.upsert(Rows([Document(number, None)], rows([number], seed=number).vectors))
            assert store.search(rows([number], seed=number).vectors[0], 1)[0].id == number

        list(pool.map(work, range(100)))
        assert store.count() == 100


class Folder(RuleBasedStateMachine):
    """Whatever is done to a folder, by whichever handle: it is what a dict would be."""

    ids = st.integers(0, 12)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="faiss-"))
        self.model: dict[Id, np.ndarray] = {}
        self.store = create_store(f"faiss:{self.folder}", FORM)
        self.reader = open_store(f"faiss:{self.folder}")

    @rule(ids=st.sets(ids, min_size=1), seed=st.integers(0, 99))
    def upsert(self, ids: set[int], seed: int) -> None:
        written = rows(sorted(ids), seed)
        self.store.upsert(written)
        self.model.update(zip(written.ids, written.vectors, strict=True))

    @rule(ids=st.sets(ids))
    def delete(self, ids: set[int]) -> None:
        self.store.delete(ids)
        for id in ids:
            self.model.pop(id, None)

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = open_store(f"faiss:{self.folder}")

    @rule(seed=st.integers(0, 99), k=st.integers(1, 15))
    def search(self, seed: int, k: int) -> None:
        query = rows([0], seed).vectors[0]
        near = sorted((float(vector @ query) for vector in self.model.values()), reverse=True)[:k]
        for store in (self.store, self.reader):
            hits = store.search(query, k)
            np.testing.assert_allclose([hit.score for hit in hits], near, atol=1e-5)
            assert all(abs(self.model[hit.id] @ query - hit.score) < 1e-5 for hit in hits)

    @invariant()
    def holds(self) -> None:
        for store in (self.store, self.reader):
            walked: list[Any] = [document.id for page in store.pages(3) for document in page]
            assert walked == sorted(self.model)  # type: ignore[type-var]
            found = store.get(list(self.model))
            np.testing.assert_allclose(
                found.vectors, list(self.model.values()) or np.empty((0, D)), atol=1e-6
            )

    def teardown(self) -> None:
        self.store.close()
        self.reader.close()
        shutil.rmtree(self.folder)


TestAnySequence = Folder.TestCase
TestAnySequence.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
