"""Counts of a re-index are compared with the source's own."""

from pathlib import Path
from typing import Any

import psycopg
import pytest

import trimtab
from tests.client.fake_server import FakeServer
from tests.client.migration.test_bad_documents import ALL, NEW, TEXTS, client, fake, moved, run
from tests.client.migration.world import fill
from tests.client.stores.postgres_process import PostgresProcess
from trimtab.migration import reindex
from trimtab.stores import create_store, open_store

__all__ = ["client", "fake"]


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
