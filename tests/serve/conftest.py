"""One server process for all tests that only ask it things; and the truth they compare it with."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.serve.server_process import ServerProcess, serve
from tests.texts import TEXTS


@pytest.fixture(scope="session")
def server(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A `trimtab serve` over the real encoder, with the default configuration."""
    with serve(minilm_repository, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def truth(minilm_source: Path) -> np.ndarray:
    """What sentence-transformers makes of TEXTS with the same weights: float32 (n, 384)."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(minilm_source), device="cpu")
    vectors: np.ndarray = encoder.encode(TEXTS, batch_size=8, show_progress_bar=False)
    return vectors
