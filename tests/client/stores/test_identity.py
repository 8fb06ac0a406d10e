"""Two names of one place are one place: what a store is, whatever its address says."""

import os
import shutil
from collections.abc import Hashable, Iterator
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
from qdrant_client import QdrantClient, models

import trimtab
from tests.client.stores.postgres_process import PostgresProcess
from tests.client.stores.test_contract import FORM, rows
from trimtab.stores import create_store, open_store


def identity(url: str) -> frozenset[Hashable]:
    with open_store(url) as store:
        return store.identity()


def one(left: str, right: str) -> bool:
    return bool(identity(left) & identity(right))


def test_folders_of_faiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("docs", "other"):
        with create_store(f"faiss:{name}", FORM) as store:
            store.upsert(rows([1, 2]))
    (tmp_path / "link").symlink_to("docs")
    shutil.copytree(tmp_path / "docs", tmp_path / "hard", copy_function=os.link)
    shutil.copytree(tmp_path / "docs", tmp_path / "copy")
    for same in (f"faiss:{tmp_path}/docs", "faiss:./other/../docs", "faiss:link", "faiss:hard"):
        assert one("faiss:docs", same), same
    assert not one("faiss:docs", "faiss:other")
    assert not one("faiss:docs", "faiss:copy")


def test_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    shutil.copy(tmp_path / "a.npy", tmp_path / "copy.npy")
    (tmp_path / "link.npy").symlink_to(tmp_path / "a.npy")
    (tmp_path / "hard.npy").hardlink_to(tmp_path / "a.npy")
    for name in ("link", "hard"):
        assert one(str(tmp_path / "a.npy"), str(tmp_path / f"{name}.npy"))
    assert not one(str(tmp_path / "a.npy"), str(tmp_path / "copy.npy"))
    parquet.write_table(pyarrow.table({"id": [1], "vector": [[1.0]]}), tmp_path / "a.parquet")
    (tmp_path / "link.pq").symlink_to(tmp_path / "a.parquet")
    assert one(str(tmp_path / "a.parquet"), f"{tmp_path / 'link.pq'}#?space=x")


def test_tables(database: PostgresProcess) -> None:
    url = database.url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("CREATE SCHEMA apart")
        columns = "(id bigint PRIMARY KEY, text text, embedding vector(4), another vector(4))"
        for table in ("public.same", "apart.same", "other"):
            connection.execute(f"CREATE TABLE {table} {columns}")  # type: ignore[arg-type]
        connection.execute("CREATE VIEW seen AS SELECT * FROM same WHERE id > 1")
        connection.execute("CREATE VIEW seen_twice AS SELECT * FROM seen")
        connection.execute(f"CREATE TABLE parts {columns} PARTITION BY RANGE (id)")  # type: ignore[arg-type]
        connection.execute("CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
        connection.execute("CREATE TABLE part_2 PARTITION OF parts FOR VALUES FROM (10) TO (20)")
        connection.execute("CREATE DATABASE elsewhere TEMPLATE postgres")
    local = url.replace("127.0.0.1", "localhost")
    path = f"{url}?options=-csearch_path%3Dapart,public"
    for same in ("public.same", "seen", "public.seen_twice", "same?vector=another"):
        assert one(f"{url}#same", f"{url}#{same}"), same
        assert one(f"{url}#same", f"{local}#{same}"), same
    assert one(f"{path}#same", f"{url}#apart.same")
    assert not one(f"{path}#same", f"{url}#same")
    assert one(f"{url}#parts", f"{url}#part_2")
    assert not one(f"{url}#part_1", f"{url}#part_2")
    for other in (f"{url}#other", f"{url}#apart.same", f"{url.replace('/postgres', '/elsewhere')}#same"):
        assert not one(f"{url}#same", other), other


def test_a_server_that_does_not_say_which_it_is(database: PostgresProcess) -> None:
    url = database.url
    for table in ("shy_a", "shy_b"):
        create_store(f"{url}#{table}", FORM, example=1).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE shy LOGIN SUPERUSER PASSWORD 'shy'")
        connection.execute("ALTER ROLE shy SET search_path = hiding, pg_catalog, public")
        connection.execute("CREATE SCHEMA hiding")
        connection.execute(
            "CREATE FUNCTION hiding.pg_control_system(OUT system_identifier bigint) LANGUAGE plpgsql "
            "AS $$ BEGIN RAISE insufficient_privilege; END $$"
        )
    shy = url.replace(f"trimtab:{database.password}", "shy:shy")
    assert one(f"{shy}#shy_a", f"{shy}#public.shy_a")
    assert not one(f"{shy}#shy_a", f"{shy}#shy_b")


def test_collections_in_a_folder(tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'q'}"
    for name in ("docs", "other"):
        create_store(f"{url}#{name}", FORM).close()
    client = QdrantClient(path=str(tmp_path / "q"))
    alias = models.CreateAlias(collection_name="docs", alias_name="alias")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
    client.close()
    (tmp_path / "link").symlink_to(tmp_path / "q")
    assert one(f"{url}#docs", f"{url}#alias")
    assert one(f"{url}#docs", f"qdrant:{tmp_path / 'link'}#alias")
    assert not one(f"{url}#docs", f"{url}#other")


class FakeQdrant(BaseHTTPRequestHandler):
    """Says what a Qdrant server of two peers says of itself, or keeps it to itself."""

    silent = False

    def do_GET(self) -> None:
        vectors = {"size": FORM.dimensions, "distance": "Cosine"}
        hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000}
        optimizers = {
            "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0,
            "flush_interval_sec": 5,
        }  # fmt: skip
        config = {
            "params": {"vectors": vectors}, "hnsw_config": hnsw, "optimizer_config": optimizers,
            "metadata": {"trimtab_space": FORM.space},
        }  # fmt: skip
        collection = {
            "status": "green", "optimizer_status": "ok", "segments_count": 1, "config": config,
            "payload_schema": {},
        }  # fmt: skip
        peer = {"uri": "http://peer"}
        cluster = {
            "status": "enabled", "peer_id": 7, "peers": {"7": peer, "8": peer}, "message_send_failures": {},
            "raft_info": {"term": 1, "commit": 1, "pending_operations": 0, "is_voter": True},
            "consensus_thread_status": {"consensus_thread_status": "working", "last_update": "2026-01-01"},
        }  # fmt: skip
        path = self.path.partition("?")[0]
        answers: dict[str, Any] = {
            "/aliases": {"aliases": [{"alias_name": "alias", "collection_name": "docs"}]},
            "/cluster": cluster,
            "/telemetry": {
                "id": f"process {self.server.server_port}",
                "collections": {"number_of_collections": 1},
            },  # type: ignore[attr-defined]
        }
        hidden = self.silent and path in {"/telemetry", "/cluster"}
        result = answers.get(path, {"exists": True} if path.endswith("/exists") else collection)
        self.send_response(403 if hidden else 200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(
            msgspec.json.encode({"result": None if hidden else result, "status": "ok", "time": 0})
        )

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def two_peers() -> Iterator[tuple[int, int]]:
    """The ports of two servers that are one cluster."""
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), FakeQdrant) as left,
        ThreadingHTTPServer(("127.0.0.1", 0), FakeQdrant) as right,
    ):
        for server in (left, right):
            Thread(target=server.serve_forever, daemon=True).start()
        yield left.server_port, right.server_port
        for server in (left, right):
            server.shutdown()


def test_collections_of_a_server(two_peers: tuple[int, int]) -> None:
    left, right = (f"qdrant+http://127.0.0.1:{port}" for port in two_peers)
    assert one(f"{left}#docs", f"{left}#alias")
    assert one(f"{left}#docs", f"{right}#alias"), "two peers of one cluster"
    assert one(f"{left}#docs", f"{left.replace('127.0.0.1', 'localhost')}#alias")
    assert not one(f"{left}#docs", f"{right}#other")


def test_a_qdrant_that_does_not_say_which_it_is(
    two_peers: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeQdrant, "silent", True)
    left, right = (f"qdrant+http://127.0.0.1:{port}" for port in two_peers)
    assert one(f"{left}#docs", f"{left.replace('127.0.0.1', 'localhost')}#alias")
    assert not one(f"{left}#docs", f"{right}#docs")


def test_a_store_is_not_made_over_its_source(url: str) -> None:
    if url.startswith("qdrant:"):
        pytest.skip("its folder opens once")
    create_store(url, FORM, example=1).close()
    with open_store(url) as source:
        with pytest.raises(trimtab.ConfigError, match="are one place"):
            create_store(url, FORM, source=source)
        create_store(f"{url}_new", FORM, source=source, example=1).close()
