"""Ranges of packed vectors: calibrated, clipped."""

import numpy as np

from trimtab_export.variants import packed, retrieval


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_rare_large_component_does_not_coarsen_all_others() -> None:
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(500, 64)))
    usual = packed.limit(rows)
    rows[3, 5] = 40.0
    assert packed.limit(rows) == np.float32(usual) or abs(packed.limit(rows) / usual - 1) < 0.1


def test_what_packing_keeps() -> None:
    rng = np.random.default_rng(0)
    documents = unit(rng.normal(size=(400, 64)))
    queries = unit(documents[:100] + 0.25 * rng.normal(size=(100, 64)))
    whole = float(retrieval.gains(queries, documents, "cosine")[0].mean())
    found = packed.measure(queries, documents, packed.limit(documents), whole, "cosine")
    assert found.int8_ndcg > 0.98
    assert found.ubinary_ndcg < found.ubinary_documents_ndcg < found.int8_ndcg
    # A range far too small would turn values over where they wrap; clipped, they keep their signs.
    clipped = packed.measure(queries, documents, 0.01, whole, "cosine")
    assert clipped.int8_ndcg > 0.9 * found.ubinary_ndcg
