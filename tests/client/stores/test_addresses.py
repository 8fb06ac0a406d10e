"""How stores are named, what is missing, and that no message tells a secret."""

import builtins
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import psycopg
import pyarrow
import pytest
from pyarrow import parquet

import trimtab
from tests.client.stores.postgres_process import PostgresProcess
from tests.client.stores.test_contract import FORM, D, rows
from trimtab.stores import Document, Form, Rows, address, create_store, open_store

SECRET = "s3cr3t-p4ss"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("faiss:some/folder", "faiss:some/folder"),
        ("qdrant:some/folder#docs?text=body", "qdrant:some/folder#docs"),
        ("qdrant+http://localhost:6333#docs", "qdrant+http://localhost:6333#docs"),
        (f"qdrant+https://me:{SECRET}@host#docs", "qdrant+https://host#docs"),
        (f"postgresql://me:{SECRET}@host:5432/db#public.docs", "postgresql://host:5432/db#public.docs"),
        (f"postgres://host/db?password={SECRET}&sslmode=require#docs?id=key", "postgresql://host/db#docs"),
        ("vectors.npy", "vectors.npy"),
        ("old.parquet#?text=body", "old.parquet"),
    ],
)
def test_names(url: str, name: str) -> None:
    parsed = address.parse(url)
    assert parsed.name == name
    assert SECRET not in repr(parsed)
    assert SECRET not in parsed.scrub(f"at password={SECRET}")
    assert SECRET not in url or SECRET not in parsed.scrub(f"cannot log in with {SECRET}")


@pytest.mark.parametrize(
    "url",
    [
        "nothing",
        "faiss:",
        "faiss:folder#docs",
        "qdrant:folder",
        "qdrant+http://localhost:6333",
        "postgresql://host/db",
        "postgresql:docs#t",
        "redis://host#docs",
        f"mysql://me:{SECRET}@host/db#docs",
        f"postgresql://me:{SECRET}#x@host/db#docs",
        f"postgresql://me:{SECRET}/x@host/db#docs",
        f"postgresql://me:12?{SECRET}@host/db#docs",
        f"postgresql://me:12/{SECRET}@host/db#docs",
        f"postgresql://me:{SECRET}@host:port/db#docs",
        f"postgresql://me:{SECRET}@host/db",
        f"qdrant+http://me:{SECRET}@[::1/#docs",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(trimtab.ConfigError) as caught:
        open_store(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("faiss:{}/x", "faiss", "faiss"),
        ("qdrant:{}/x#docs", "qdrant_client", "qdrant"),
        ("postgresql://127.0.0.1:1/db#docs", "psycopg", "pgvector"),
        ("postgresql://127.0.0.1:1/db#docs", "pgvector", "pgvector"),
    ],
)
def test_a_package_that_is_missing(
    url: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **keywords)

    for module in ("faiss_store", "faiss_index"):  # as if none had asked for it yet
        monkeypatch.delitem(sys.modules, f"trimtab.stores.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(trimtab.ConfigError, match=rf"needs the package '{package}'.*trimtab\[{extra}\]"):
        create_store(url.format(tmp_path), FORM)


def test_a_wrong_password_is_not_told(database: PostgresProcess) -> None:
    url = f"postgresql://trimtab:{SECRET}@127.0.0.1:{database.port}/postgres#docs"
    with pytest.raises(trimtab.Unavailable, match="password authentication failed") as caught:
        open_store(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_nobody_there() -> None:
    for url in ("postgresql://127.0.0.1:1/db#docs", "qdrant+http://127.0.0.1:1#docs"):
        with pytest.raises(trimtab.Unavailable, match="does not answer as it should"):
            open_store(url)


def test_somebody_elses_table(database: PostgresProcess) -> None:
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("CREATE SCHEMA shop")
        connection.execute("CREATE TABLE shop.goods (sku uuid PRIMARY KEY, body text, emb halfvec(4), n int)")
        connection.execute(
            "INSERT INTO shop.goods VALUES ('6b2f0dbe-5bdf-4d3c-9d0b-2a4ef0c1a001', 'one', '[1,0,0,0]', 1), "
            "('6b2f0dbe-5bdf-4d3c-9d0b-2a4ef0c1a002', NULL, '[0,1,0,0]', 2)"
        )
        connection.execute("CREATE TABLE shop.plain (id text, text text, embedding vector)")
        connection.execute("CREATE TABLE shop.wrong (id text, text text, embedding text)")
    columns = "id=sku&text=body&vector=emb"
    with open_store(f"{database.url}#shop.goods?{columns}&space=claimed&similarity=dot") as store:
        assert store.form == Form(space="claimed", dimensions=4, similarity="dot")
        first, second = (document.id for page in store.pages(1) for document in page)
        assert first == "6b2f0dbe-5bdf-4d3c-9d0b-2a4ef0c1a001"
        assert store.texts([first, second, "no uuid", 5]) == {first: "one", second: None}
        assert store.search(np.array([0, 2, 0, 0], np.float32), 1)[0].score == pytest.approx(2)
        store.upsert(Rows([Document(first, "changed")], np.ones((1, 4), np.float32)))
        assert store.texts([first]) == {first: "changed"}
        with pytest.raises(trimtab.InvalidArgument, match="ids of type uuid"):
            store.upsert(Rows([Document("x", None)], np.ones((1, 4), np.float32)))
        with pytest.raises(trimtab.InvalidArgument, match="holds a NUL"):
            store.upsert(Rows([Document(second, "a\0b")], np.ones((1, 4), np.float32)))
    for fragment, complaint in (
        ("shop.goods", "no column 'id' for the id; it has sku"),
        ("shop.goods?id=sku&text=body&vector=body", "is text, not vector"),
        ("shop.wrong", "is text, not vector"),
        ("shop.plain", "no fixed dimensions"),
        (f"shop.goods?{columns}&similarity=near", "'near' is not known"),
        (f"shop.goods?{columns}&colour=red", "no option 'colour'"),
        ('shop.goods" (id) ; DROP TABLE shop.goods; --', "not exist|cross-database"),
        ("none", "does not exist"),
    ):
        with pytest.raises(trimtab.TrimtabError, match=complaint):
            open_store(f"{database.url}#{fragment}")


def test_a_claim_that_contradicts_the_record(url: str) -> None:
    create_store(url, FORM).close()
    if url.startswith("faiss:"):
        return  # its own file says what it is
    with open_store(f"{url}?space=space-a") as store:
        assert store.form.space == "space-a"
    with pytest.raises(trimtab.FailedPrecondition, match="recorded as of space space-a"):
        open_store(f"{url}?space=space-b")


def test_a_server_that_comes_back(database: PostgresProcess) -> None:
    with create_store(f"{database.url}#comes_back", FORM, example=0) as store:
        store.upsert(rows([1]))
        database.stop()
        try:
            with pytest.raises(trimtab.Unavailable, match="comes_back does not answer"):
                store.count()
            with pytest.raises(trimtab.Unavailable):
                store.upsert(rows([2]))
        finally:
            database.start()
        store.upsert(rows([2]))
        assert store.count() == 2


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # qdrant-client leaves its lock open
def test_a_folder_of_qdrant_opens_once(tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'q'}#docs"
    with create_store(url, FORM), pytest.raises(trimtab.FailedPrecondition, match="open already"):
        open_store(url)
    with pytest.raises(trimtab.NotFound, match="folder above it"):
        create_store(f"qdrant:{tmp_path / 'a' / 'b'}#docs", FORM)


def test_named_vectors_of_qdrant(tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'q'}#docs"
    with create_store(f"{url}?vector=body&text=content", FORM) as store:
        store.upsert(rows([1, 2]))
    with pytest.raises(trimtab.ConfigError, match=r"named vectors \(body\)"):
        open_store(url)
    with open_store(f"{url}?vector=body&text=content") as store:
        np.testing.assert_allclose(store.get([2]).vectors, rows([1, 2]).vectors[1:], atol=1e-6)
        assert store.search(rows([1, 2]).vectors[0], 1)[0].text == "text 1 of 0"
    with open_store(f"{url}?vector=body") as store:
        assert store.texts([1]) == {1: None}


def test_npy(tmp_path: Path) -> None:
    vectors = rows(list(range(5))).vectors
    np.save(tmp_path / "old.npy", vectors.astype(np.float16))
    with open_store(f"{tmp_path / 'old.npy'}") as store:
        assert store.form == Form(space=None, dimensions=D)
        assert [document.id for page in store.pages(2) for document in page] == [0, 1, 2, 3, 4]
        assert store.search(vectors[3], 1)[0].id == 3
        assert store.get([4, 9, -1, "x"]).ids == [4] and len(store.sample(3)) == 3
        with pytest.raises(trimtab.Unimplemented, match="only be read"):
            store.upsert(rows([1]))
        with pytest.raises(trimtab.Unimplemented, match="only be read"):
            store.delete([1])
    beside = {"vectors": {"space": "abc", "encoder": "e"}, "rows": 5}
    (tmp_path / "old.npy.json").write_bytes(msgspec.json.encode(beside))
    with open_store(f"{tmp_path / 'old.npy'}") as store:
        assert store.form.space == "abc"
    np.save(tmp_path / "flat.npy", vectors[0])
    np.save(tmp_path / "whole.npy", np.ones((3, 4), np.int8))
    (tmp_path / "bad.npy").write_bytes(b"\x80\x04pickle")
    complaints = {"flat": "shape", "whole": "int8", "bad": "NumPy array", "gone": "not exist"}
    for name, complaint in complaints.items():
        with pytest.raises(trimtab.TrimtabError, match=complaint):
            open_store(f"{tmp_path / name}.npy")


def test_parquet(tmp_path: Path) -> None:
    written = rows(["b", "a", "c"])
    table = pyarrow.table(
        {"id": ["b", "a", "c"], "body": ["B", None, "C"], "vector": list(written.vectors)}
    ).replace_schema_metadata({"trimtab_space": "abc"})
    parquet.write_table(table, tmp_path / "old.parquet")
    with open_store(f"{tmp_path / 'old.parquet'}#?text=body") as store:
        assert store.form == Form(space="abc", dimensions=D)
        assert [document.id for page in store.pages(2) for document in page] == ["a", "b", "c"]
        assert store.texts(["a", "c", 1]) == {"a": None, "c": "C"}
        np.testing.assert_allclose(store.get(["c"]).vectors, written.vectors[2:])
    with open_store(f"{tmp_path / 'old.parquet'}") as store:
        assert store.texts(["b"]) == {"b": None}
    for name, columns in {
        "twice": {"id": [1, 1], "vector": [[1.0], [2.0]]},
        "ragged": {"id": [1, 2], "vector": [[1.0], [2.0, 3.0]]},
        "real": {"id": [1.5], "vector": [[1.0]]},
    }.items():
        parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
    (tmp_path / "bad.parquet").write_text("no")
    for name, complaint in (
        ("twice.parquet", "id twice"),
        ("ragged.parquet", "row 2, document 2: .* a vector of 2 numbers, where others hold 1"),
        ("real.parquet", "row 1: 1.5 is float"),
        ("bad.parquet", "cannot be read as Parquet"),
        ("gone.parquet", "does not exist"),
        ("old.parquet#?vector=none", "no column 'none'; it has 'id', 'body'"),
        ("old.parquet#?text=none", "no column 'none'"),
    ):
        with pytest.raises(trimtab.TrimtabError, match=complaint):
            open_store(f"{tmp_path / name}")
    with pytest.raises(trimtab.ConfigError, match="can only be read"):
        create_store(f"{tmp_path / 'old.parquet'}", FORM)


def test_the_key_of_a_qdrant_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["api-key"]))
            self.send_response(403)
            self.end_headers()
            self.wfile.write(f"the key {self.headers['api-key']} is not known".encode())

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    monkeypatch.setenv("QDRANT_API_KEY", SECRET)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        # qdrant-client says that the key travels in plain text.
        with pytest.warns(UserWarning, match="insecure"), pytest.raises(trimtab.Unavailable) as caught:
            open_store(f"qdrant+http://127.0.0.1:{server.server_port}#docs")
        server.shutdown()
    assert asked == [("/collections/docs/exists", SECRET)]
    assert "403" in str(caught.value) and SECRET not in str(caught.value)
