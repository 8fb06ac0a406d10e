"""Stores that keep several outputs, and a fake server."""

from pathlib import Path

import pytest

from tests.client.either import either, server, url
from tests.client.stores.conftest import address, database

__all__ = ["database", "either", "server", "url"]


@pytest.fixture(params=["qdrant", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may be made that keeps all outputs."""
    kind: str = request.param
    return address(kind, tmp_path, request)
