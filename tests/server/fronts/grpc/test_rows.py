"""What a row is does not depend on the rows beside it; and what it is packed into is what was asked for."""

import numpy as np

import trimtab
from tests.server.server_process import NAME, ServerProcess
from tests.texts import TEXTS

TOLERANCE = 1e-4


def test_order_and_neighbours_do_not_matter(server: ServerProcess) -> None:
    """A row computed among neighbours equals the row alone, wherever it stands."""
    with trimtab.Client(server.url, timeout=100) as client:
        alone = np.concatenate([client.embed([text], encoder=NAME, timeout=240) for text in TEXTS])
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(len(TEXTS))
            together = client.embed([TEXTS[index] for index in order], encoder=NAME, timeout=240)
            np.testing.assert_allclose(together, alone[order], atol=1e-5)


def test_cut_and_packed_vectors(server: ServerProcess, truth: np.ndarray) -> None:
    cut = truth[:, :128] / np.linalg.norm(truth[:, :128], axis=1, keepdims=True)
    with trimtab.Client(server.url, timeout=100) as client:

        def embed(dtype: str, dimensions: int = 128) -> trimtab.Embeddings:
            return client.embed_detailed(TEXTS, encoder=NAME, dimensions=dimensions, dtype=dtype, timeout=240)

        np.testing.assert_allclose(embed("float32").vectors, cut, atol=TOLERANCE)
        half = embed("float16").vectors
        assert half.dtype == np.float16
        np.testing.assert_allclose(half, cut, atol=1e-3)
        for dimensions, whole in ((128, cut), (384, truth)):
            small = embed("int8", dimensions)
            assert small.vectors.dtype == np.int8
            back = small.vectors.astype(np.float32)
            cosines = (back * whole).sum(1) / np.linalg.norm(back, axis=1)
            assert cosines.min() > 0.995
            assert np.abs(back * small.scale - whole).max() < 0.1
        bits = embed("ubinary").vectors
        assert bits.shape == (len(TEXTS), 16)
        clear = np.abs(cut) > 10 * TOLERANCE
        assert (np.unpackbits(bits, axis=1).astype(bool) == (cut > 0))[clear].all()
