"""One bad document stops nothing: it is named, the others move. And counts are the source's own."""

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
from tests.client.migration.conftest import address
from tests.client.migration.world import OLD, fill
from tests.client.stores.postgres_process import PostgresProcess
from trimtab import cli
from trimtab.migration import reindex
from trimtab.stores import Document, Form, Id, Rows, Store, create_store, open_store
from trimtab.v1 import encoder_pb2 as pb

NEW = Form(space="space-1", dimensions=DIMENSIONS)
ALL: list[Id] = list(range(40))
TEXTS = [f"text {id}" for id in ALL]


def run(*arguments: str) -> int:
    return cli.main(["reindex", *arguments])


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


def moved(client: trimtab.Client, source: str, target: str, **options: Any) -> reindex.Outcome:
    """The outcome of a re-index, whose sampled vectors are right."""
    encoder = client.encoder()
    with (
        open_store(source) as old,
        create_store(target, reindex.target_form(encoder), example=old.page(None, 1)[0].id) as new,
    ):
        return reindex.Reindex(client, old, new, encoder, batch=16, **options).run()


def named(outcome: reindex.Outcome) -> dict[Id, str]:
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


# Counts


def table_of(database: PostgresProcess, name: str, type: str, ids: list[Any]) -> str:
    """A table of somebody's, whose column of ids is not unique."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE {name} (id {type}, text text, embedding vector(16))")  # type: ignore[arg-type]
        with connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO {name} VALUES (%s, %s, %s)",  # type: ignore[arg-type]
                [(id, f"text {place}", str([1.0] * 16)) for place, id in enumerate(ids)],
            )
    return f"{database.url}#{name}"


def test_an_id_twice_at_a_pages_edge(
    fake: FakeServer, database: PostgresProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = table_of(database, "twice", "bigint", [*range(256), *range(255, 299)])
    command = ["--from", source, "--to", f"faiss:{tmp_path / 'new'}", "--url", fake.url]  # type: ignore[attr-defined]
    assert run(*command) == 1
    assert "300 rows have 299 ids, and some share one, such as 255" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    source = table_of(database, "nameless", "bigint", [*range(10), None, None])
    assert run("--from", source, *command[2:]) == 1
    assert "2 of 12 rows have no id (NULL)" in capsys.readouterr().err


def test_a_table_without_a_key_whose_ids_differ_all_the_same(
    client: trimtab.Client, database: PostgresProcess, tmp_path: Path
) -> None:
    source = table_of(database, "keyless", "bigint", ALL)
    assert moved(client, source, f"faiss:{tmp_path / 'new'}").kept == 40


def test_ids_of_a_fixed_length(client: trimtab.Client, database: PostgresProcess, tmp_path: Path) -> None:
    ids = [f"doc-{id}" for id in ALL]
    for type in ("char(12)", "varchar(12)"):
        source = table_of(database, f"fixed_{type[:4]}", type, ids)
        with open_store(source) as store:
            assert [document.id for page in store.pages(7) for document in page] == sorted(ids)
            assert store.get(["doc-3"]).ids == ["doc-3"] and store.texts(["doc-30"]) == {"doc-30": "text 30"}
            assert store.texts(["d"]) == {}
        outcome = moved(client, source, f"faiss:{tmp_path / type}")
        assert (outcome.moved, outcome.kept, outcome.aside) == (40, 40, ())
        assert moved(client, source, f"faiss:{tmp_path / type}").moved == 0


@pytest.mark.parametrize("type", ["boolean", "bytea", "real", "bigint[]"])
def test_columns_that_name_nothing(type: str, database: PostgresProcess) -> None:
    source = table_of(database, f"odd_{type[:4]}", type, [])
    with pytest.raises(trimtab.ConfigError, match="ids are whole numbers, text or UUIDs"):
        open_store(source)


def test_pages_that_do_not_give_what_is_counted(
    client: trimtab.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"faiss:{tmp_path / 'old'}"
    fill(source, ALL, TEXTS)
    encoder = client.encoder()
    with open_store(source) as old, create_store(f"faiss:{tmp_path / 'new'}", NEW) as new:
        monkeypatch.setattr(old, "count", lambda: 41)
        with pytest.raises(trimtab.FailedPrecondition, match=r"The last pass saw 40, and .* counts 41"):
            reindex.Reindex(client, old, new, encoder).run()


# Qdrant's payload is the application's


def collection(folder: Path, count: int, **payload: Any) -> str:
    """A collection of somebody's, whose points have fields of their own."""
    raw = QdrantClient(path=str(folder))
    size = models.VectorParams(size=16, distance=models.Distance.COSINE)
    raw.create_collection("docs", vectors_config=size)
    points = [
        models.PointStruct(id=id, vector=[1.0] * 16, payload={"text": f"text {id}", **payload})
        for id in range(count)
    ]
    raw.upsert("docs", points)
    raw.close()
    return f"qdrant:{folder}#docs"


@pytest.mark.parametrize("own", ["mongo-1", 7, ["a"], {"$oid": "5"}, None, True])
def test_a_field_of_the_users_called_id(own: Any, client: trimtab.Client, tmp_path: Path) -> None:
    fields = {"_id": own, "trimtab_id_of_mine": own, "tenant": "a", "allowed": ["x", {"group": 1}]}
    source, target = collection(tmp_path / "old", 400, **fields), f"qdrant:{tmp_path / 'new'}#docs"
    with open_store(source) as store:
        walked = [document for page in store.pages(256) for document in page]
        assert [document.id for document in walked] == list(range(400))
        assert set(store.sample(1000)) == set(range(400))
    outcome = moved(client, source, target)
    assert (outcome.kept, outcome.aside) == (400, ())
    with open_store(target) as store:
        assert store.get([5]).documents[0] == Document(5, "text 5", fields)


def test_what_others_wrote_into_a_point_stays(tmp_path: Path, client: trimtab.Client) -> None:
    folder = tmp_path / "new"
    raw = QdrantClient(path=str(folder))
    size = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    title = models.VectorParams(size=2, distance=models.Distance.COSINE)
    raw.create_collection("docs", vectors_config={"body": size, "title": title})
    raw.upsert(
        "docs",
        [models.PointStruct(id=5, vector={"title": [0.0, 1.0]}, payload={"flag": 1, "text": "before"})],
    )
    raw.close()
    target = f"qdrant:{folder}#docs?vector=body&space=space-1"
    source = collection(tmp_path / "old", 40, tenant="a")
    assert moved(client, source, target).kept == 40
    with open_store(source) as store:  # the text stays, the payload changes
        store.carry([Document(5, None, {"tenant": "b"})])
    assert moved(client, source, target).moved == 0
    with open_store(target) as store:
        assert store.texts([5]) == {5: "text 5"}
        store.upsert(Rows([Document(6, None)], np.ones((1, DIMENSIONS), np.float32)))
    raw = QdrantClient(path=str(folder))
    five, six = raw.retrieve("docs", [5, 6], with_vectors=True)
    assert five.payload == {"flag": 1, "text": "text 5", "tenant": "b"}
    assert six.payload == {"tenant": "a"}, "a text that is gone is gone"
    assert five.vector["title"] == [0.0, 1.0] and set(five.vector) == {"body", "title"}  # type: ignore[index,call-overload,arg-type]
    raw.close()


def test_ids_that_qdrant_cannot_take_stand_under_our_key(tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'q'}#docs"
    ids: list[Id] = ["a", -1, 7]
    with create_store(url, OLD) as store:
        store.upsert(
            Rows([Document(id, str(id), {"_id": "own"}) for id in ids], np.ones((3, 16), np.float32))
        )
        assert set(store.sample(9)) == set(ids)
        assert store.get(ids).documents[0] == Document("a", "a", {"_id": "own"})
    raw = QdrantClient(path=str(tmp_path / "q"))
    points, _ = raw.scroll("docs")
    assert sorted(str((point.payload or {}).get("trimtab_id")) for point in points) == ["-1", "None", "a"]
    raw.close()


def test_fields_that_are_taken(client: trimtab.Client, tmp_path: Path) -> None:
    for name, fields in (
        ("text", {"body": "b", "text": "a title"}),
        ("trimtab_id", {"body": "b", "trimtab_id": "mine"}),
    ):
        source = collection(tmp_path / name, 3, **fields).replace("#docs", "#docs?text=body")
        with pytest.raises(trimtab.FailedPrecondition, match=f"a field '{name}' of its own"):
            target = f"qdrant:{tmp_path / f'new-{name}'}#docs"
            moved(client, source, target if name == "text" else f"{target}?text=content")
    outcome = moved(client, collection(tmp_path / "c", 3, body="b").replace("#docs", "#docs?text=body"),
                    f"qdrant:{tmp_path / 'new'}#docs?text=content")  # fmt: skip
    assert outcome.kept == 3


@pytest.mark.parametrize("key", ["trimtab_id", "_id"])
def test_texts_under_the_key_of_ids(tmp_path: Path, key: str) -> None:
    with pytest.raises(trimtab.ConfigError, match=f"text={key} is the payload key of ids"):
        create_store(f"qdrant:{tmp_path / 'new'}#docs?text={key}", NEW)


def test_collections_of_before(tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'q'}#docs"
    with create_store(url, OLD) as store:
        store.upsert(Rows([Document("a", "text")], np.ones((1, 16), np.float32)))
    raw = QdrantClient(path=str(tmp_path / "q"))
    (point,), _ = raw.scroll("docs")
    raw.overwrite_payload("docs", {"text": "text", "_id": "a"}, [point.id])
    raw.close()
    with open_store(url) as store:
        assert store.page(None, 5) == [Document("a", "text")] and store.sample(5) == ["a"]
        assert store.texts(["a"]) == {"a": "text"}


def test_what_does_not_move_is_said(
    fake: FakeServer, database: PostgresProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = collection(tmp_path / "old", 3, tenant="a")
    assert run("--from", source, "--to", f"faiss:{tmp_path / 'new'}", "--url", fake.url) == 0  # type: ignore[attr-defined]
    assert "keeps tenant beside its documents, which do not move" in capsys.readouterr().err
    hybrid = QdrantClient(path=str(tmp_path / "hybrid"))
    hybrid.create_collection(
        "docs",
        {name: models.VectorParams(size=16, distance=models.Distance.COSINE) for name in ("a", "b")},
        sparse_vectors_config={"words": models.SparseVectorParams()},
    )
    point = {"a": [1.0] * 16, "b": [1.0] * 16, "words": models.SparseVector(indices=[1], values=[1.0])}
    hybrid.upsert("docs", [models.PointStruct(id=1, vector=point, payload={"text": "one"})])
    hybrid.close()
    source = f"qdrant:{tmp_path / 'hybrid'}#docs?vector=a"
    assert run("--from", source, "--to", f"faiss:{tmp_path / 'third'}", "--url", fake.url) == 0  # type: ignore[attr-defined]
    assert "keeps b, words beside its documents" in capsys.readouterr().err
    table = table_of(database, "with_owner", "bigint", ALL)
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("ALTER TABLE with_owner ADD owner text")
    assert run("--from", table, "--to", f"faiss:{tmp_path / 'newer'}", "--url", fake.url) == 0  # type: ignore[attr-defined]
    assert "keeps owner beside its documents" in capsys.readouterr().err


def test_stores_are_not_asked_for_what_is_no_id(tmp_path: Path) -> None:
    np.save(tmp_path / "old.npy", np.ones((3, 16), np.float32))
    with open_store(str(tmp_path / "old.npy")) as store:
        checked: Store = store
        assert checked.present([0, 9]) == {0}
