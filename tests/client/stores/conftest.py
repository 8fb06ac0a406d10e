"""Every kind of store that can be written, empty, for each test."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.stores.postgres_process import PostgresProcess, postgres

KINDS = ("faiss", "qdrant", "postgresql")
numbers = itertools.count()


@pytest.fixture(scope="session")
def database() -> Iterator[PostgresProcess]:
    """A PostgreSQL with pgvector."""
    with postgres() as running:
        yield running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kinds, one after the other."""
    name: str = request.param
    return name


@pytest.fixture
def url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Where a store of this kind may be made."""
    return address(kind, tmp_path, request)


def address(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """The address of a store that does not exist yet."""
    if kind == "faiss":
        return f"faiss:{folder / f'faiss-{next(numbers)}'}"
    if kind == "qdrant":
        return f"qdrant:{folder / f'qdrant-{next(numbers)}'}#docs"
    database: PostgresProcess = request.getfixturevalue("database")
    return f"{database.url}#docs_{next(numbers)}"
