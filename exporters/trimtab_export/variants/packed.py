"""Measures what packed vectors keep: int8 with a calibrated range, and one bit per component."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.cards import Packed
from trimtab.kinds import Similarity
from trimtab_export.variants import retrieval

Floats: TypeAlias = NDArray[np.float32]

INSIDE = 0.9999  # of all components; those beyond the range are clipped to its ends
MOST = 127


def limit(vectors: Floats) -> float:
    """The absolute component that int8 maps to 127: the share of components beyond it is 1 - INSIDE."""
    return float(np.quantile(np.abs(vectors), INSIDE))


def measure(queries: Floats, documents: Floats, range: float, best: float, similarity: Similarity) -> Packed:
    """The share of `best`, an nDCG@10, that packed vectors keep.

    Args:
        queries, documents: of a variant, float32 (n, dimensions).
        range: see `limit`.
        best: of the bundle's first variant in float32.
    """

    def int8(rows: Floats) -> Floats:
        packed: Floats = np.clip(np.rint(rows * (MOST / range)), -MOST, MOST).astype(np.float32)
        return packed

    def bits(rows: Floats) -> Floats:
        signs: Floats = np.where(rows > 0, 1, -1).astype(np.float32)
        return signs

    def share(mine: Floats, theirs: Floats, similarity: Similarity) -> float:
        ndcg = retrieval.gains(mine, theirs, similarity)[0].mean()
        return round(float(ndcg / max(best, 1e-9)), 4)

    return Packed(
        int8_limit=range,
        int8_ndcg=share(int8(queries), int8(documents), similarity),
        # By the Hamming distance, which orders as the product of signs does.
        ubinary_ndcg=share(bits(queries), bits(documents), "dot"),
        ubinary_documents_ndcg=share(queries, bits(documents), "dot"),
    )
