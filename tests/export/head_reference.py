"""The head in numpy, written without a look at the grafted nodes: the check of an ONNX source."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.kinds import Pooling
from trimtab_export.source import Dense, Head

Floats: TypeAlias = NDArray[np.float32]


def apply(layout: Head, states: Floats, mask: NDArray[np.int64]) -> Floats:
    """Vectors float32 (n, dimensions) of token states (n, length, hidden), or of vectors already pooled.

    `mask` is int64 (n, length), 1 for real tokens, which come first in a row.
    """
    vectors = states if layout.pooling is None else _pool(layout.pooling, states, mask)
    for layer in layout.layers:
        if isinstance(layer, Dense):
            vectors = _dense(layer, vectors)
        else:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors.astype(np.float32)


def _pool(pooling: Pooling, states: Floats, mask: NDArray[np.int64]) -> Floats:
    """Row by row, over the real tokens alone."""
    rows = [row[: int(real.sum())] for row, real in zip(states, mask, strict=True)]
    match pooling:
        case "mean":
            return np.stack([row.mean(axis=0) for row in rows])
        case "cls":
            return np.stack([row[0] for row in rows])
        case "last":
            return np.stack([row[-1] for row in rows])
        case "max":
            return np.stack([row.max(axis=0) for row in rows])


def _dense(layer: Dense, vectors: Floats) -> Floats:
    product: Floats = vectors @ layer.weight.T
    if layer.bias is not None:
        product = product + layer.bias
    match layer.activation:
        case "Identity":
            return product
        case "Tanh":
            return np.tanh(product)
        case "ReLU":
            return np.maximum(product, np.float32(0))
        case "Sigmoid":
            return np.float32(1) / (np.float32(1) + np.exp(-product))
