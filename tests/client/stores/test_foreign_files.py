"""Files that Trimtab did not make are neither written, nor renamed, nor deleted, whatever they are called."""

import os
from pathlib import Path

import faiss
import msgspec
import numpy as np
import pytest

import trimtab
from tests.client.stores.test_contract import FORM, D, rows
from trimtab.artifacts import durable
from trimtab.stores import Form, create_store, faiss_contents, faiss_log, folder, open_store

FOREIGN = (
    "index-2025.faiss", "index-0.faiss", "index-1.faiss", "rows-2025.jsonl", "rows-1.jsonl", "log-2025",
    "log-0", "log-1", "log-app.txt", "store.json.new", "store.json.bak", "index-1.faiss.new",
    ".trimtab-mine.partial", "index-1-0123456789abcdef.faiss", "log-1-0123456789abcdef",
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    """All files, with what they hold."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def taken_over(folder: Path, index: str, lines: str, count: int = 40) -> None:
    """An index of somebody's, with the two files that make it a store."""
    written = rows(list(range(count)))
    made = faiss.IndexFlatIP(D)
    made.add(written.vectors)
    faiss.write_index(made, str(folder / index))
    encoded = [msgspec.json.encode({"id": each.id, "text": each.text}) for each in written.documents]
    (folder / lines).write_bytes(b"\n".join(encoded))
    catalogue = {"space": FORM.space, "dimensions": D, "index": index, "rows": lines}
    (folder / "store.json").write_bytes(msgspec.json.encode(catalogue))


@pytest.mark.parametrize(
    ("index", "lines"),
    [("index-2026.faiss", "rows-2026.jsonl"), ("index-0.faiss", "rows-0.jsonl"), ("my.index", "my.rows")],
)
def test_an_index_that_was_taken_over_and_all_beside_it_stay(
    tmp_path: Path, index: str, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_contents, "LEAST_COMPACTED", 10)
    for name in FOREIGN:
        (tmp_path / name).write_bytes(f"of the application: {name}".encode())
    (tmp_path / "rows-7.jsonl").mkdir()
    (tmp_path / "log-7").symlink_to(tmp_path / "log-2025")
    taken_over(tmp_path, index, lines)
    theirs = contents(tmp_path)
    del theirs["store.json"]
    with open_store(f"faiss:{tmp_path}") as store:
        store.upsert(rows([1000]))
        assert contents(tmp_path).items() >= theirs.items()
        for number in range(60):  # several generations
            store.upsert(rows([2000 + number], seed=number))
            store.delete([number])
        assert folder.read_catalogue(tmp_path).generation >= 2
        assert contents(tmp_path).items() >= theirs.items()
    assert contents(tmp_path).items() >= theirs.items()
    assert (tmp_path / "rows-7.jsonl").is_dir() and (tmp_path / "log-7").is_symlink()
    with open_store(f"faiss:{tmp_path}") as store:
        assert store.count() == 61
        assert store.get([2059]).ids == [2059]


@pytest.mark.parametrize("name", ["index-0.faiss", "index-1-0123456789abcdef.faiss", "rows-3.jsonl", "log-0"])
def test_a_store_is_not_made_among_files_of_such_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"of the application")
    with pytest.raises(trimtab.FailedPrecondition, match=rf"file '{name}', which is not overwritten.*empty"):
        create_store(f"faiss:{tmp_path}", FORM)
    assert contents(tmp_path) == {name: b"of the application"}, "and nothing is beside it"


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b'{"name": "of the application"}', b"\0" * 300, b'{"a":' * 9000, b'{"\xff": 1}'],
    ids=range(7),
)
def test_a_catalogue_of_another_program_stays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.json").write_bytes(content)
    for opened in (lambda: open_store(f"faiss:{tmp_path}"), lambda: create_store(f"faiss:{tmp_path}", FORM)):
        with pytest.raises(trimtab.ConfigError, match=r"store\.json"):
            opened()
    assert contents(tmp_path)["store.json"] == content


@pytest.mark.parametrize("key", ["../../x", "2025", "0123456789ABCDEF", "*", "0123456789abcdef0"])
def test_a_key_that_trimtab_did_not_make(tmp_path: Path, key: str) -> None:
    taken_over(tmp_path, "my.index", "my.rows")
    catalogue = msgspec.json.decode((tmp_path / "store.json").read_bytes())
    (tmp_path / "store.json").write_bytes(msgspec.json.encode({**catalogue, "key": key}))
    with pytest.raises(trimtab.ConfigError, match="key"):
        open_store(f"faiss:{tmp_path}")


def test_a_folder_that_is_only_read_stays_as_it_is(tmp_path: Path) -> None:
    taken_over(tmp_path, "my.index", "my.rows")
    before = contents(tmp_path)
    with open_store(f"faiss:{tmp_path}") as store:
        store.search(rows([1]).vectors[0], 5)
        list(store.batches(7))
    assert contents(tmp_path) == before


def test_an_index_exchanged_below_the_log_is_noticed(tmp_path: Path) -> None:
    """What Trimtab wrote belongs to the index that it saw, not to one that took its place."""
    taken_over(tmp_path, "my.index", "my.rows")
    store = open_store(f"faiss:{tmp_path}")
    store.upsert(rows([7]))
    faiss.write_index(faiss.IndexFlatIP(D), str(tmp_path / "my.index"))
    with pytest.raises(trimtab.FailedPrecondition, match=r"my\.index is damaged or was replaced"):
        open_store(f"faiss:{tmp_path}")
    store.close()


def test_a_store_of_an_earlier_version_keeps_what_its_log_says(tmp_path: Path) -> None:
    taken_over(tmp_path, "index-0.faiss", "rows-0.jsonl")
    earlier = {"format": 1, "generation": 0, "similarity": "cosine"}
    catalogue = msgspec.json.decode((tmp_path / "store.json").read_bytes())
    (tmp_path / "store.json").write_bytes(msgspec.json.encode({**catalogue, **earlier}))
    written = rows([500, 3], seed=4)
    log = faiss_log.LogWriter(tmp_path / "log-0", 0)
    lines = [faiss_log.Row(each.id, each.text) for each in written.documents]
    log.append(faiss_log.Record(rows=lines, vectors=written.vectors.tobytes()))
    log.close()
    for _ in range(2):
        with open_store(f"faiss:{tmp_path}") as store:
            assert store.texts([3, 4, 500]) == {3: "text 3 of 4", 4: "text 4 of 0", 500: "text 500 of 4"}
            np.testing.assert_allclose(store.get([500]).vectors, written.vectors[:1], atol=1e-6)
            store.upsert(rows([600]))


def test_two_that_make_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one finds the store of the first, also where it looked before that was there."""
    looked = folder.check_vacant

    def first(path: Path, name: str) -> None:
        looked(path, name)
        monkeypatch.undo()
        with create_store(f"faiss:{tmp_path}", FORM) as store:
            store.upsert(rows([1]))

    monkeypatch.setattr(folder, "check_vacant", first)
    with create_store(f"faiss:{tmp_path}", FORM) as store:
        assert store.count() == 1
    with pytest.raises(trimtab.FailedPrecondition, match="space-b"):
        create_store(f"faiss:{tmp_path}", Form(space="space-b", dimensions=D))


@pytest.mark.parametrize(
    "change",
    [
        {"dimensions": 0}, {"dimensions": -1}, {"dimensions": 2 * D}, {"dimensions": D // 2},
        {"dimensions": 2**60}, {"logs": []}, {"logs": [".."]}, {"logs": [""]}, {"logs": ["a\0b"]},
        {"logs": ["../log"]}, {"format": 0}, {"key": ""}, {"similarity": "jaccard"},
    ],
    ids=str,
)  # fmt: skip
def test_a_catalogue_that_was_changed_by_hand(tmp_path: Path, change: dict[str, object]) -> None:
    """It is refused by name: never other vectors, and never an empty store."""
    store = create_store(f"faiss:{tmp_path}", FORM)
    store.upsert(rows([1, 2]))
    path = tmp_path / "store.json"
    right = path.read_bytes()
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(right), **change}))
    with pytest.raises((trimtab.ConfigError, trimtab.FailedPrecondition), match=r"store\.json"):
        open_store(f"faiss:{tmp_path}")
    path.write_bytes(right)
    store.close()
    with open_store(f"faiss:{tmp_path}") as store:
        assert store.count() == 2


def test_a_store_of_a_later_version_says_so(tmp_path: Path) -> None:
    create_store(f"faiss:{tmp_path}", FORM).close()
    path = tmp_path / "store.json"
    later = {"format": 99, "field": "of a later version", "logs": {"of": "another type"}}
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **later}))
    with pytest.raises(trimtab.ConfigError, match=r"is of format 99, this Trimtab reads formats up to 2"):
        open_store(f"faiss:{tmp_path}")


def test_a_folder_that_is_not_qdrants_is_not_begun_by_reading_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"of the application")
    with pytest.raises(trimtab.NotFound, match=r"meta\.json"):
        open_store(f"qdrant:{tmp_path}#docs")
    assert contents(tmp_path) == {"notes.txt": b"of the application"}


def test_a_file_takes_the_place_of_files_only(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"of the application")
    (tmp_path / "link").symlink_to("file")
    for name in ("folder", "pipe"):
        with pytest.raises(OSError, match="is not a file"):
            durable.replace(tmp_path / name, b"new")
    durable.replace(tmp_path / "link", b"new")
    assert contents(tmp_path) == {"file": b"of the application", "link": b"new"}
    assert (tmp_path / "folder").is_dir() and (tmp_path / "pipe").is_fifo()
