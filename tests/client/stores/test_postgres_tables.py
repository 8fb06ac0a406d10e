"""Tables of somebody else's as a store: names, types and triggers that are not as Trimtab would make them."""

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

import trimtab
from tests.client.stores.conftest import numbers
from tests.client.stores.postgres_process import PostgresProcess
from trimtab.stores import Document, Id, Rows, Store, open_store

VECTORS = np.eye(4, dtype=np.float32)


@pytest.fixture
def table(database: PostgresProcess) -> Iterator[tuple[psycopg.Connection, str, str]]:
    """A connection, a name for a table, and the address of that table."""
    name = f"table_{next(numbers)}"
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        yield connection, name, f"{database.url}#{name}"


def made(table: tuple[psycopg.Connection, str, str], columns: str) -> str:
    """The address of a table with these columns."""
    connection, name, address = table
    connection.execute(f"CREATE TABLE {name} ({columns})")  # type: ignore[arg-type]
    return address


def upsert(store: Store, *documents: tuple[Id, str]) -> None:
    store.upsert(Rows([Document(id, text) for id, text in documents], VECTORS[: len(documents)]))


def texts(store: Store) -> dict[Id, str | None]:
    """All texts, by way of pages, whose ids must lead to the documents."""
    ids = [document.id for page in store.pages(1) for document in page]
    assert store.present(ids) == set(ids) and store.get(ids).ids == ids
    return store.texts(ids)


def test_domains_are_what_they_are_made_of(table: tuple[psycopg.Connection, str, str]) -> None:
    connection, name, _ = table
    connection.execute(f"CREATE DOMAIN {name}_id AS bigint")  # type: ignore[arg-type]
    connection.execute(f"CREATE DOMAIN {name}_vector AS vector(4)")  # type: ignore[arg-type]
    address = made(table, f"id {name}_id PRIMARY KEY, text text, embedding {name}_vector")
    with open_store(address) as store:
        upsert(store, (1, "one"), (2, "two"))
        assert texts(store) == {1: "one", 2: "two"}
        store.delete([1])
        assert store.count() == 1 and store.form.dimensions == 4


def test_names_with_signs_that_mean_something_elsewhere(table: tuple[psycopg.Connection, str, str]) -> None:
    connection, name, address = table
    connection.execute(
        f'CREATE TABLE "{name}% ""s" ("i%d" bigint PRIMARY KEY, "T%s" text, "{{v}}" vector(4))'  # type: ignore[arg-type]
    )
    with open_store(f'{address}% "s?id=i%25d&text=T%25s&vector={{v}}') as store:
        upsert(store, (1, "one"))
        assert texts(store) == {1: "one"}
        assert [hit.id for hit in store.search(VECTORS[0], 1)] == [1]


@pytest.mark.parametrize("type", ["bytea", "jsonb", "integer", "xml"])
def test_a_column_of_texts_that_are_none(table: tuple[psycopg.Connection, str, str], type: str) -> None:
    address = made(table, f"id bigint PRIMARY KEY, text {type}, embedding vector(4)")
    with pytest.raises(trimtab.ConfigError, match=rf"column 'text' of .* is {type}, not text.*view"):
        open_store(address)


@pytest.mark.parametrize(
    ("columns", "document"),
    [
        ("id numeric PRIMARY KEY, text text", ("01", "another's place")),
        ("id varchar(3) PRIMARY KEY, text text", ("abc  ", "cut to the id abc")),
        ("id name PRIMARY KEY, text text", ("a" * 64, "cut to 63")),
        ("id timestamptz PRIMARY KEY, text text", ("2026-01-01", "another writing of it")),
        ("id bigint PRIMARY KEY, text char(20)", (1, "padded")),
        ("id bigint PRIMARY KEY, text varchar(5)", (1, "blank  ")),
    ],
)
def test_what_a_type_makes_of_a_document(
    table: tuple[psycopg.Connection, str, str], columns: str, document: tuple[Id, str]
) -> None:
    """It is refused before it takes another's place, or is embedded again for ever."""
    with open_store(made(table, f"{columns}, embedding vector(4)")) as store:
        with pytest.raises(trimtab.InvalidArgument, match=r"does not keep it.*types of its columns"):
            upsert(store, document)
        assert store.count() == 0


def test_an_id_that_would_be_anothers(table: tuple[psycopg.Connection, str, str]) -> None:
    with open_store(made(table, "id numeric PRIMARY KEY, text text, embedding vector(4)")) as store:
        upsert(store, ("1", "one"))
        with pytest.raises(trimtab.InvalidArgument, match="'01'"):
            upsert(store, ("2", "two"), ("01", "another"))
        assert texts(store) == {"1": "one"}


@pytest.mark.parametrize(
    ("body", "when"),
    [("RETURN NULL", "BEFORE INSERT"), ("NEW.text = lower(NEW.text); RETURN NEW", "BEFORE INSERT OR UPDATE")],
)
def test_triggers(table: tuple[psycopg.Connection, str, str], body: str, when: str) -> None:
    connection, name, _ = table
    address = made(table, "id bigint PRIMARY KEY, text text, embedding vector(4)")
    connection.execute(
        f"CREATE FUNCTION {name}_f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; END $$"  # type: ignore[arg-type]
    )
    connection.execute(
        f"CREATE TRIGGER t {when} ON {name} FOR EACH ROW EXECUTE FUNCTION {name}_f()"  # type: ignore[arg-type]
    )
    with open_store(address) as store:
        with pytest.raises(trimtab.InvalidArgument, match="triggers"):
            upsert(store, (1, "One"))
        assert store.count() == 0


@pytest.mark.parametrize(
    "columns",
    [
        "id bigint, text text, embedding vector(4)",
        "id bigint PRIMARY KEY, text text GENERATED ALWAYS AS ('x') STORED, embedding vector(4)",
    ],
)
def test_tables_that_cannot_be_written(table: tuple[psycopg.Connection, str, str], columns: str) -> None:
    with (
        open_store(made(table, columns)) as store,
        pytest.raises(trimtab.FailedPrecondition, match="unique index on its ids"),
    ):
        upsert(store, (1, "one"))
