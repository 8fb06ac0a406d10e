"""The truth that the served vectors are compared with."""

from pathlib import Path

import numpy as np
import pytest

from tests.texts import TEXTS


@pytest.fixture(scope="session")
def truth(minilm_source: Path) -> np.ndarray:
    """What sentence-transformers makes of TEXTS with the same weights: float32 (n, 384)."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(minilm_source), device="cpu")
    vectors: np.ndarray = encoder.encode(TEXTS, batch_size=8, show_progress_bar=False)
    return vectors
