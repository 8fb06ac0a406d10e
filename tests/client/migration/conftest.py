"""Old stores with real texts, and the real server that re-embeds them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import trimtab
from tests.client.migration.world import fill
from tests.client.stores.conftest import KINDS, address, database
from tests.server.server_process import ServerProcess
from trimtab import cli
from trimtab_export import sentences

__all__ = ["KINDS", "address", "database"]


def run(*arguments: str) -> int:
    """`trimtab reindex`; its exit status."""
    return cli.main(["reindex", *arguments])


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some hundred short real texts, no two of them alike."""
    kept = [text[:60] for text in sentences.load() if "\0" not in text]
    return [f"{text} ({number})" for number in range(3) for text in kept]


@pytest.fixture
def client(server: ServerProcess) -> Iterator[trimtab.Client]:
    with trimtab.Client(server.url, timeout=100) as opened:
        yield opened


@pytest.fixture
def old(tmp_path: Path, texts: list[str]) -> str:
    """A FAISS folder of the old encoder's, whose ids are text."""
    url = f"faiss:{tmp_path / 'old'}"
    fill(url, [f"doc-{number}" for number in range(len(texts))], texts)
    return url


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The kinds of stores, one after the other."""
    name: str = request.param
    return name
