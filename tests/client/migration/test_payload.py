"""Qdrant's payload is the application's: a re-index carries it along, and keeps its own under one key."""

from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from qdrant_client import QdrantClient, models

import trimtab
from tests.client.fake_server import DIMENSIONS, FakeServer
from tests.client.migration.test_bad_documents import ALL, NEW, client, fake, moved, run
from tests.client.migration.test_counts import table_of
from tests.client.migration.world import OLD
from tests.client.stores.postgres_process import PostgresProcess
from trimtab.stores import Document, Id, Rows, Store, create_store, open_store

__all__ = ["client", "fake"]


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
