"""`trimtab reindex` and what it is made of: real stores, a real server, and processes that are killed."""

import ast
import math
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import psycopg
import pyarrow
import pytest
from pyarrow import parquet

import trimtab
from tests.client.migration.conftest import address, run
from tests.client.migration.world import OLD, fill
from tests.client.stores.postgres_process import PostgresProcess
from tests.server.server_process import ServerProcess
from trimtab.migration import claims
from trimtab.stores import Document, Form, Id, Rows, open_store


def check_done(target: str, ids: list[Id], texts: list[str], client: trimtab.Client) -> None:
    """All documents are there, each once, with the vectors of their texts."""
    with open_store(target) as store:
        assert store.form.space == client.encoder().space
        assert store.count() == len(ids)
        rows = store.get(ids)
    assert rows.ids == ids
    assert [document.text for document in rows.documents] == texts
    np.testing.assert_allclose(rows.vectors, client.embed(texts), atol=1e-4)


@pytest.mark.parametrize(
    ("before", "after"), [("faiss", "qdrant"), ("qdrant", "postgresql"), ("postgresql", "faiss")]
)
def test_documents_move(
    before: str,
    after: str,
    server: ServerProcess,
    client: trimtab.Client,
    texts: list[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = address(before, tmp_path, request), address(after, tmp_path, request)
    ids: list[Id] = list(range(10, 90))
    fill(source, ids, texts[:80])
    command = ["--from", source, "--to", target, "--url", server.url, "--encoder", "all-minilm-l6-v2"]
    assert run(*command, "--batch", "32", "--sample", "16") == 0
    said = capsys.readouterr().err
    assert "not checked" in said, "nobody serves the old space"
    assert "80 documents" in said and "80 embedded now, 16 sampled vectors verified" in said
    check_done(target, ids, texts[:80], client)

    # Again, there is nothing to do but what changed meanwhile.
    with open_store(source) as store:
        store.upsert(
            Rows([Document(11, "another text"), Document(500, "a new one")], np.ones((2, 16), np.float32))
        )
    with open_store(target) as store:
        store.upsert(Rows([Document(900, "of the application")], client.embed(["of the application"])))
    assert run(*command) == 0
    said = capsys.readouterr().err
    assert "81 documents" in said and "2 embedded now" in said and "1 documents are in" in said
    changed = ["another text" if id == 11 else text for id, text in zip(ids, texts, strict=False)]
    check_done(target, [*ids, 500, 900], [*changed, "a new one", "of the application"], client)


def counted(target: str) -> int:
    """How many documents a store has that another process writes."""
    if target.startswith("qdrant:"):
        file = (
            Path(target.removeprefix("qdrant:").partition("#")[0]) / "collection" / "docs" / "storage.sqlite"
        )
        try:
            with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
                found: int = connection.execute("SELECT count(*) FROM points").fetchone()[0]
        except sqlite3.OperationalError:
            return 0
        finally:
            if "connection" in locals():
                connection.close()
        return found
    try:
        with open_store(target) as store:
            return store.count()
    except trimtab.NotFound:
        return 0


@pytest.fixture
def reindexing(server: ServerProcess) -> Callable[[str, str], subprocess.Popen[bytes]]:
    """Starts `trimtab reindex` in a process of its own, in small batches."""

    def start(source: str, target: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "trimtab.cli", "reindex", "--from", source, "--to", target]
        command += ["--url", server.url, "--batch", "32", "--sample", "16"]
        return subprocess.Popen(command, stderr=subprocess.PIPE)

    return start


def wait_for(count: int, target: str, process: subprocess.Popen[bytes]) -> None:
    """Until the target has so many documents, or the process ends."""
    until = time.monotonic() + 150
    while process.poll() is None and counted(target) < count:
        assert time.monotonic() < until


def test_killed_at_any_point_it_goes_on(
    kind: str,
    old: str,
    reindexing: Callable[[str, str], subprocess.Popen[bytes]],
    server: ServerProcess,
    client: trimtab.Client,
    texts: list[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    target = address(kind, tmp_path, request)
    kills, reached = 0, 0
    asked = server.metrics()
    for share in sorted(random.uniform(0, 0.9) for _ in range(3)):
        process = reindexing(old, target)
        wait_for(max(reached, int(share * len(texts))) + 1, target, process)
        process.kill()
        kills += process.wait() != 0
        assert process.stderr is not None
        process.stderr.close()
        assert counted(target) >= reached, "what was written stays"
        reached = counted(target)
    process = reindexing(old, target)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said.decode()
    check_done(target, [f"doc-{number}" for number in range(len(texts))], texts, client)
    name = 'trimtab_texts_total{encoder="all-minilm-l6-v2"'
    embedded = sum(
        value - asked.get(each, 0) for each, value in server.metrics().items() if each.startswith(name)
    )
    verified = 16 + len(texts)  # the sample, and what check_done asked for
    assert embedded <= len(texts) + verified + 32 * kills, "at most a batch is embedded again"


def test_a_store_that_goes_away_in_the_middle(
    old: str,
    database: PostgresProcess,
    reindexing: Callable[[str, str], subprocess.Popen[bytes]],
    client: trimtab.Client,
    texts: list[str],
) -> None:
    target = f"{database.url}#goes_away"
    process = reindexing(old, target)
    wait_for(40, target, process)
    database.stop()
    try:
        _, said = process.communicate(timeout=240)
        message = said.decode()
        assert process.returncode == 1
        assert f"postgresql://127.0.0.1:{database.port}/postgres#goes_away does not answer" in message
        assert "the same command goes on from here" in message
        assert database.password not in message
        assert "Traceback" not in message
    finally:
        database.start()
    process = reindexing(old, target)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said.decode()
    check_done(target, [f"doc-{number}" for number in range(len(texts))], texts, client)


def test_vectors_that_are_not_of_the_claimed_space(
    server: ServerProcess,
    client: trimtab.Client,
    texts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = client.encoder()
    ids: list[Id] = list(range(40))
    form = Form(space=encoder.space, dimensions=encoder.dimensions)
    fill(f"faiss:{tmp_path / 'wrong'}", ids, texts[:40], form)
    right = client.embed(texts[:40])
    fill(f"faiss:{tmp_path / 'shuffled'}", ids, texts[:40], form, right[::-1])
    fill(f"faiss:{tmp_path / 'right'}", ids, texts[:40], form, right)
    for name in ("wrong", "shuffled"):
        target = tmp_path / f"from-{name}"
        assert run("--from", f"faiss:{tmp_path / name}", "--to", f"faiss:{target}", "--url", server.url) == 1
        said = capsys.readouterr().err
        assert f"claims space {encoder.space}, but" in said and "median cosine" in said
        assert not target.exists(), "nothing was begun"
    with open_store(f"faiss:{tmp_path / 'right'}") as store:
        assert "40 sampled vectors" in claims.check_source(client, store)
    wrong_size = f"faiss:{tmp_path / 'size'}"
    fill(wrong_size, ids, texts[:40], Form(space=encoder.space, dimensions=16))
    with open_store(wrong_size) as store, pytest.raises(trimtab.FailedPrecondition, match="384 dimensions"):
        claims.check_source(client, store)


def test_vectors_that_are_none(client: trimtab.Client, tmp_path: Path) -> None:
    vectors = np.ones((20, 16), np.float32)
    vectors[:, 3] = math.nan
    np.save(tmp_path / "old.npy", vectors)
    with (
        open_store(str(tmp_path / "old.npy")) as store,
        pytest.raises(trimtab.FailedPrecondition, match="NaN"),
    ):
        claims.check_source(client, store, dict.fromkeys(range(20), "text"))


def test_texts_come_from_a_file(
    server: ServerProcess,
    client: trimtab.Client,
    texts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ids: list[Id] = list(range(30))
    np.save(tmp_path / "old.npy", np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32))
    lines = [msgspec.json.encode({"number": id, "body": texts[id]}) for id in range(30)]
    (tmp_path / "docs.jsonl").write_bytes(b"\n".join(lines))
    table = {"number": range(30), "body": texts[:30]}
    parquet.write_table(pyarrow.table(table), tmp_path / "docs.parquet")
    columns = ["--id-column", "number", "--text-column", "body", "--url", server.url]
    for name in ("docs.jsonl", "docs.parquet"):
        target = f"faiss:{tmp_path / f'new-{name}'}"
        command = ["--from", str(tmp_path / "old.npy"), "--to", target, *columns]
        assert run(*command, "--texts", str(tmp_path / name)) == 0
        check_done(target, ids, texts[:30], client)
    capsys.readouterr()
    (tmp_path / "docs.jsonl").write_bytes(b"\n".join(lines[:-1]))
    assert run(*command, "--texts", str(tmp_path / "docs.jsonl")) == 3
    assert "document 29: the file of texts has none for it" in capsys.readouterr().err
    (tmp_path / "docs.jsonl").write_bytes(b"\n".join([*lines, lines[0]]))
    assert run(*command, "--texts", str(tmp_path / "docs.jsonl")) == 1
    assert "line 31: the id 0 comes twice" in capsys.readouterr().err
    assert run(*command) == 1
    assert "old.npy has no text for it" in capsys.readouterr().err


def test_stores_that_cannot_be_the_target(
    server: ServerProcess, old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(f"faiss:{tmp_path / 'other'}", [1], ["a text"])
    for target, complaint in (
        (old, "the-old-space"),
        (f"faiss:{tmp_path / 'other'}", "must not be mixed"),
        (str(tmp_path / "new.npy"), "can only be read"),
        ("nowhere", "is no store"),
    ):
        assert run("--from", old, "--to", target, "--url", server.url) == 1
        assert complaint in capsys.readouterr().err


def test_a_store_is_not_re_indexed_into_itself(
    server: ServerProcess,
    client: trimtab.Client,
    old: str,
    texts: list[str],
    database: PostgresProcess,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # As bad as it can be: the old vectors have the new ones' dimensions, and nothing names their space.
    space = client.encoder().space
    table = f"{database.url}#of_the_application"
    fill(table, list(range(20)), texts[:20], Form(space="x", dimensions=client.encoder().dimensions))
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("COMMENT ON TABLE of_the_application IS 'precious'")
        connection.execute("CREATE VIEW seen_by_the_search AS SELECT * FROM of_the_application")
    lines = [msgspec.json.encode({"id": id, "text": f"another {texts[id]}"}) for id in range(20)]
    (tmp_path / "texts.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "link").symlink_to(tmp_path / "old")
    with open_store(table) as store:
        before = store.get(list(range(20)))
    schema = table.replace("#", "#public.").replace("127.0.0.1", "localhost")
    view = table.replace("of_the_application", "seen_by_the_search")
    for source, target in (
        (table, f"{schema}?space={space}"),
        (table, f"{schema}?space={space}&vector=embedding"),
        (view, f"{table}?space={space}"),
        (old, f"faiss:{tmp_path / 'link'}"),
        (f"faiss:{tmp_path / 'link'}/.", old),
    ):
        command = ["--from", source, "--to", target, "--url", server.url]
        if source != old and "faiss" not in source:
            command += ["--texts", str(tmp_path / "texts.jsonl")]
        assert run(*command) == 1
        said = capsys.readouterr().err
        assert "are one place" in said and "elete" not in said, said
    with open_store(table) as store:
        after = store.get(list(range(20)))
    assert after.documents == before.documents
    np.testing.assert_array_equal(after.vectors, before.vectors)


def test_nobody_is_told_to_delete() -> None:
    # Trimtab does not know what else a store, a table or a folder holds.
    advice = re.compile(r"(?i)[;:.,] (or |then |and )?(delete|drop|remove|empty) (the|this|that|it|those)")
    for module in (Path(trimtab.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Raise):
                found = advice.search(ast.unparse(node))
                assert found is None, f"{module.name}, line {node.lineno}: {found}"


def test_a_vector_in_the_new_store_that_is_not_its_texts(
    server: ServerProcess,
    client: trimtab.Client,
    texts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = f"faiss:{tmp_path / 'old'}", f"faiss:{tmp_path / 'new'}"
    fill(source, list(range(20)), texts[:20])
    encoder = client.encoder()
    fill(target, [3], [texts[3]], Form(space=encoder.space, dimensions=encoder.dimensions))
    assert run("--from", source, "--to", target, "--url", server.url) == 1
    assert (
        "1 of 20 sampled vectors are not those of their texts, such as that of document 3"
        in capsys.readouterr().err
    )


def test_an_old_form_is_known(client: trimtab.Client, old: str) -> None:
    with open_store(old) as store:
        assert store.form == OLD
        assert "no encoder of space the-old-space is served" in claims.check_source(client, store)
