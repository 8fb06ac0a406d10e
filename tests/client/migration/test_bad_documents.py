"""One bad document stops nothing: it is named, and the others move."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psycopg
import pyarrow
import pytest
from pyarrow import parquet
from qdrant_client import QdrantClient, models

import trimtab
from tests.client.fake_server import DIMENSIONS, FakeServer, vectors
from tests.client.migration.conftest import address, run
from tests.client.migration.world import OLD, fill
from tests.client.stores.postgres_process import PostgresProcess
from trimtab.migration import reindex
from trimtab.migration.making import target_outputs
from trimtab.stores import Document, Form, Id, Rows, create_store, open_store
from trimtab.v1 import encoder_pb2 as pb

NEW = Form(space="space-1", dimensions=DIMENSIONS)
ALL: list[Id] = list(range(40))
TEXTS = [f"text {id}" for id in ALL]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    server.url = server.start()  # type: ignore[attr-defined]
    yield server
    server.stop()


@pytest.fixture
def client(fake: FakeServer) -> Iterator[trimtab.Client]:
    with trimtab.Client(fake.url, timeout=60) as opened:  # type: ignore[attr-defined]
        yield opened


def moved(client: trimtab.Client, source: str, target: str, **options: Any) -> reindex.ReindexResult:
    """The outcome of a re-index, whose sampled vectors are right."""
    encoder = client.encoder()
    with (
        open_store(source) as old,
        create_store(target, target_outputs(encoder), example=old.page(None, 1)[0].id) as new,
    ):
        return reindex.Reindex(client, old, new, encoder, batch=16, **options).run()


def named(outcome: reindex.ReindexResult) -> dict[Id, str]:
    return {each.id: each.reason for each in outcome.aside}


def test_texts_that_cannot_be_embedded(
    kind: str, client: trimtab.Client, fake: FakeServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source, target = address(kind, tmp_path, request), address(kind, tmp_path, request)
    texts: list[str | None] = list(TEXTS)
    texts[3], texts[4], texts[20] = None, "x" * 10_001, "refused by the server"
    refusal = pb.Error(code=3, message="texts[0] is not to its taste")
    fake.faults.refusals["refused by the server"] = deque([refusal] * 9)
    with create_store(source, OLD, example=0) as store:
        documents = [Document(id, text) for id, text in zip(ALL, texts, strict=True)]
        store.upsert(Rows(documents, np.ones((len(ALL), OLD.dimensions), np.float32)))
    outcome = moved(client, source, target)
    found = named(outcome)
    assert sorted(found) == [3, 4, 20]  # type: ignore[type-var]
    assert "has no text" in found[3]
    assert "10,001 bytes, and the server takes 10,000" in found[4]
    assert "not to its taste" in found[20]
    assert (outcome.moved, outcome.kept, outcome.extra) == (37, 37, 0)
    with open_store(target) as store:
        kept = [id for id in ALL if id not in found]
        rows = store.get(ALL)
        assert rows.ids == kept
        right = vectors([TEXTS[int(id)] for id in kept], role=pb.ROLE_PASSAGE)
        np.testing.assert_allclose(rows.vectors, right, atol=1e-5)
    again = moved(client, source, target)
    assert again.moved == 0 and sorted(named(again)) == [3, 4, 20]  # type: ignore[type-var]


def test_the_run_ends_with_their_names(
    client: trimtab.Client, fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = f"faiss:{tmp_path / 'old'}", f"faiss:{tmp_path / 'new'}"
    fill(source, [f"doc-{id}" for id in ALL], ["x" * 20_000] * 25 + TEXTS[25:])
    command = ["--from", source, "--to", target, "--url", fake.url]  # type: ignore[attr-defined]
    assert run(*command, "--aside", str(tmp_path / "none" / "aside.jsonl")) == 1
    assert "the folder does not exist" in capsys.readouterr().err
    assert run(*command, "--aside", str(tmp_path / "aside.jsonl")) == 3
    said = capsys.readouterr().err
    assert "not moved: document 'doc-0': its text has 20,000 bytes" in said
    assert "5 more; --aside FILE names all" in said and "25 documents of" in said
    lines = (tmp_path / "aside.jsonl").read_text().splitlines()
    assert [msgspec.json.decode(line)["id"] for line in lines] == sorted(f"doc-{id}" for id in range(25))
    with open_store(source) as store:
        store.upsert(
            Rows([Document(f"doc-{id}", "short") for id in range(25)], np.ones((25, 16), np.float32))
        )
    assert run(*command) == 0, "mended, they move"


def test_the_list_of_names_takes_no_other_files_place(
    client: trimtab.Client, fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {"id": [1, 2], "text": ["one", None], "vector": [[1.0] * 16] * 2}
    parquet.write_table(pyarrow.table(table), tmp_path / "old.parquet")
    with create_store(f"faiss:{tmp_path / 'faiss'}", Form(space="s", dimensions=2)) as store:
        store.upsert(Rows([Document(1, "one")], np.eye(1, 2, dtype=np.float32)))
    (tmp_path / "mine.jsonl").write_text('{"id": 1, "reason": "mine", "more": 1}\n')
    (tmp_path / "list.json").write_text("[]\n")
    command = ["--from", str(tmp_path / "old.parquet"), "--to", f"faiss:{tmp_path / 'new'}"]
    command += ["--url", fake.url]  # type: ignore[attr-defined]
    (tmp_path / "nested.json").write_text("[" * 9000)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for name in ("old.parquet", "faiss/store.json", "mine.jsonl", "list.json", "nested.json", "latin.txt"):
        before = (tmp_path / name).read_bytes()
        assert run(*command, "--aside", str(tmp_path / name)) == 1
        assert "no earlier run wrote it; name another file" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        assert run(*command, "--aside", str(path)) == 1
        assert "is not a file" in capsys.readouterr().err
    assert not (tmp_path / "new").exists(), "all of this before anything began"
    (tmp_path / "empty").touch()
    for _ in range(2):  # the second time, it is its own
        assert run(*command, "--aside", str(tmp_path / "empty")) == 3
        assert msgspec.json.decode((tmp_path / "empty").read_bytes())["id"] == 2


def test_where_none_can_be_moved_it_is_no_exception(
    client: trimtab.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"faiss:{tmp_path / 'old'}"
    fill(source, ALL, ["x" * 20_000] * len(ALL))
    with pytest.raises(trimtab.FailedPrecondition, match="none of 40 sampled documents"):
        moved(client, source, f"faiss:{tmp_path / 'new'}")
    fill(f"faiss:{tmp_path / 'most'}", ALL, ["x" * 20_000] * 20 + TEXTS[20:])
    monkeypatch.setattr(reindex, "MOST_ASIDE", 10)
    with pytest.raises(trimtab.FailedPrecondition, match=r"more than 10 documents of .* such as 10"):
        moved(client, f"faiss:{tmp_path / 'most'}", f"faiss:{tmp_path / 'new'}")


@pytest.mark.parametrize("kind", ["faiss", "qdrant", "postgresql"])
@pytest.mark.parametrize("id", [True, np.int64(3), "\ud800", 2**64, -(2**63) - 1, 1.5, None, b"x"])
def test_what_is_no_id(kind: str, id: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with create_store(
        address(kind, tmp_path, request), NEW, example="a" if isinstance(id, str) else 1
    ) as store:
        rows = Rows([Document(id, "text")], np.ones((1, DIMENSIONS), np.float32))
        with pytest.raises(trimtab.InvalidArgument, match="cannot hold document"):
            store.upsert(rows)
        assert store.count() == 0
        assert store.texts([id]) == {} and len(store.get([id])) == 0 and store.present([id]) == set()
        store.delete([id])
        half = Rows([Document("a" if isinstance(id, str) else 1, "a\ud800")], rows.vectors)
        with pytest.raises(trimtab.InvalidArgument, match="half of a surrogate pair at character 1"):
            store.upsert(half)


def test_ids_that_the_target_cannot_hold(
    client: trimtab.Client, database: PostgresProcess, tmp_path: Path
) -> None:
    source = f"faiss:{tmp_path / 'old'}"
    ids: list[Id] = [1, 2, 2**63, 2**64 - 1, -(2**63), "text", "nul\0", 40]
    fill(source, ids, TEXTS[: len(ids)])
    outcome = moved(client, source, f"{database.url}#whole_ids")
    assert set(named(outcome)) == {2**63, 2**64 - 1, "text", "nul\0"}
    assert "ids of type bigint" in named(outcome)["text"]
    assert outcome.kept == 4
    fill(f"faiss:{tmp_path / 'text'}", ["a", "nul\0", "b"], ["a", "b", "nul\0"])
    outcome = moved(client, f"faiss:{tmp_path / 'text'}", f"{database.url}#text_ids")
    assert set(named(outcome)) == {"nul\0", "b"} and outcome.kept == 1


def test_an_id_that_postgresql_cannot_index(
    client: trimtab.Client, database: PostgresProcess, tmp_path: Path
) -> None:
    source = f"faiss:{tmp_path / 'old'}"
    long = np.random.default_rng(0).bytes(9000).hex()  # which does not compress
    fill(source, ["a", "b", long], TEXTS[:3])
    outcome = moved(client, source, f"{database.url}#long_ids")
    assert outcome.kept == 2 and "refuses a value" in named(outcome)[long]


def test_rows_of_postgresql_without_a_vector(
    client: trimtab.Client, fake: FakeServer, database: PostgresProcess
) -> None:
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        for table, width in (("bare_old", 16), ("bare_new", DIMENSIONS)):
            connection.execute(
                f"CREATE TABLE {table} (id bigint PRIMARY KEY, text text, embedding vector({width}))"  # type: ignore[arg-type]
            )
            connection.execute(f"INSERT INTO {table} SELECT n, 'text ' || n FROM generate_series(0, 39) n")  # type: ignore[arg-type]
        one = str([1.0] * 16)
        connection.execute("UPDATE bare_old SET embedding = %s::vector WHERE id <> 5", (one,))
    source, target = f"{database.url}#bare_old", f"{database.url}#bare_new?space=space-1"
    with open_store(source) as store:
        assert store.count() == 40
        assert store.get([4, 5, 6]).ids == [4, 6]
        assert store.texts([4, 5]) == {4: "text 4"} and store.present([4, 5, 99]) == {4, 5}
        assert 5 not in {hit.id for hit in store.search(np.ones(16, np.float32), 40)}
    outcome = moved(client, source, target)
    assert (outcome.moved, outcome.kept, outcome.aside) == (40, 40, ())
    with open_store(target) as store:
        assert len(store.get(ALL)) == 40


def test_points_of_qdrant_without_the_vector(client: trimtab.Client, tmp_path: Path) -> None:
    folder = tmp_path / "q"
    raw = QdrantClient(path=str(folder))
    size = models.VectorParams(size=16, distance=models.Distance.COSINE)
    raw.create_collection("docs", vectors_config={"body": size, "title": size})
    points = [
        models.PointStruct(
            id=id,
            vector={"title": [1.0] * 16} if id == 5 else {"title": [1.0] * 16, "body": [1.0] * 16},
            payload={"text": f"text {id}"},
        )
        for id in range(40)
    ]
    raw.upsert("docs", points)
    raw.close()
    source = f"qdrant:{folder}#docs?vector=body&space=old"
    with open_store(source) as store:
        assert store.count() == 40 and store.beside == ["title"]
        assert store.get([4, 5, 6]).ids == [4, 6]
        assert store.texts([4, 5]) == {4: "text 4"} and store.present([4, 5]) == {4, 5}
    outcome = moved(client, source, f"qdrant:{tmp_path / 'new'}#docs")
    assert (outcome.kept, outcome.aside) == (40, ())


def test_documents_of_the_target_without_a_text(client: trimtab.Client, tmp_path: Path) -> None:
    source, target = f"faiss:{tmp_path / 'old'}", f"faiss:{tmp_path / 'new'}"
    fill(source, ALL, TEXTS)
    with create_store(target, NEW) as store:
        others = [Document("bare", None), Document("long", "x" * 20_000)]
        store.upsert(Rows(others, np.ones((2, DIMENSIONS), np.float32)))
    outcome = moved(client, source, target)
    assert (outcome.kept, outcome.extra, outcome.sampled) == (40, 2, 40)


def test_a_few_vectors_that_are_none(client: trimtab.Client, fake: FakeServer, tmp_path: Path) -> None:
    old = np.ones((40, 16), np.float32)
    old[7, 3] = np.nan
    np.save(tmp_path / "old.npy", old)
    lines = [msgspec.json.encode({"id": id, "text": text}) for id, text in zip(ALL, TEXTS, strict=True)]
    texts = tmp_path / "docs.jsonl"
    texts.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))  # a BOM, as some editors write it
    command = ["--from", str(tmp_path / "old.npy"), "--to", f"faiss:{tmp_path / 'new'}"]
    assert run(*command, "--texts", str(texts), "--url", fake.url) == 0  # type: ignore[attr-defined]


EMPTY = {
    "id": pyarrow.array([], "int64"),
    "vector": pyarrow.array([], pyarrow.list_(pyarrow.float32())),
}


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"id": [], "vector": []}, "has no rows"),
        (EMPTY, "no rows"),
        ({"id": [1, None], "vector": [[1.0], [2.0]]}, "row 2: None is NoneType"),
        ({"id": [1, 2], "vector": [[1.0], None]}, "row 2, document 2"),
        ({"id": [1, 2], "vector": [[1.0], [2.0, 3.0]]}, "row 2, document 2"),
        ({"id": [1, 2], "vector": [[1.0], [None]]}, "row 2, document 2"),
        ({"id": [1, 2], "vector": [1.0, 2.0]}, "no lists of numbers"),
        ({"id": [1, 2], "vector": ["a", "b"]}, "no lists of numbers"),
        ({"id": [1, 2], "vector": [["a"], ["b"]]}, "no lists of numbers"),
        ({"id": [True, False], "vector": [[1.0], [2.0]]}, "row 1: True is bool"),
        ({"id": [1, 2], "vector": [[1.0], [2.0]], "text": [b"a", b"b"]}, "row 1, document 1"),
    ],
)  # fmt: skip
def test_files_that_are_refused_before_anything_starts(
    table: dict[str, Any],
    complaint: str,
    fake: FakeServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parquet.write_table(pyarrow.table(table), tmp_path / "old.parquet")
    command = ["--from", str(tmp_path / "old.parquet"), "--to", f"faiss:{tmp_path / 'new'}"]
    assert run(*command, "--url", fake.url) == 1  # type: ignore[attr-defined]
    said = capsys.readouterr().err
    assert complaint in said and "Traceback" not in said, said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("id", ['"\\ud800"', "36893488147419103232", "true", "null"])
def test_ids_in_a_file_of_texts(
    id: str, fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "old.npy", np.ones((3, 16), np.float32))
    (tmp_path / "docs.jsonl").write_bytes(f'{{"id": 0, "text": "a"}}\n{{"id": {id}, "text": "a"}}\n'.encode())
    command = ["--from", str(tmp_path / "old.npy"), "--to", f"faiss:{tmp_path / 'new'}"]
    assert run(*command, "--texts", str(tmp_path / "docs.jsonl"), "--url", fake.url) == 1  # type: ignore[attr-defined]
    assert "docs.jsonl, line 2" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
