"""How near vectors are to each other, by the similarity of their space."""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.kinds import Similarity

Matrix: TypeAlias = NDArray[np.float32]


def normalised(vectors: Matrix) -> Matrix:
    """Vectors (n, d) scaled to length 1; vectors of length 0 stay as they are."""
    given = np.asarray(vectors, np.float32)
    # In float64, the squares of very small and very large numbers do not become zero or infinity.
    lengths = np.sqrt(np.einsum("...i,...i->...", given, given, dtype=np.float64))[..., None]
    fresh = np.empty(given.shape, np.float32)
    with np.errstate(invalid="ignore"):  # infinity becomes NaN
        return np.divide(given, np.where(lengths > 0, lengths, 1), out=fresh, casting="same_kind")


def scores(query: Matrix, vectors: Matrix, similarity: Similarity) -> NDArray[np.float32]:
    """How near each of the vectors (n, d) is to the query (d,): (n,), larger is nearer."""
    if similarity in {"cosine", "dot"}:
        if similarity == "cosine":
            query, vectors = normalised(query), normalised(vectors)
        near = vectors @ query
    elif similarity == "euclidean":
        near = -np.linalg.norm(vectors - query, axis=1)
    else:
        near = -np.abs(vectors - query).sum(axis=1)
    found: NDArray[np.float32] = near.astype(np.float32, copy=False)
    return found


def best(near: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """The indices of the k largest scores, largest first; among equal scores, the lower index first."""
    many = k < len(near)
    kept = np.flatnonzero(near >= np.partition(near, -k)[-k]) if many else np.arange(len(near))
    order: NDArray[np.intp] = kept[np.argsort(-near[kept], kind="stable")][:k]
    return order


def nearest(
    query: Matrix, vectors: Iterable[Matrix], similarity: Similarity, k: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Scores and row numbers of the k nearest of all vectors, best first. Vectors come in parts (n, d).

    Vectors whose score is not finite are left out.
    """
    near = np.concatenate([scores(query, part, similarity) for part in vectors])
    rows = np.flatnonzero(np.isfinite(near))
    chosen = rows[best(near[rows], k)]
    return near[chosen], chosen
