"""From a graph's vectors to what the caller asked for: cut, normalise, quantise. Pure functions."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InternalError
from trimtab.kinds import Dtype

# The engine's names: of a vector for each item, and of the mean hidden states that some adapters read, too.
DENSE, STATES = "dense", "states"
ALONE = (DENSE,)
WITH_STATES = (DENSE, STATES)


class Output(msgspec.Struct, frozen=True):
    """A matrix of `dtype`, one row a text; for int8, component = value * scale."""

    matrix: NDArray[np.generic]
    dtype: Dtype
    scale: float = 0.0


def check_finite(vectors: NDArray[np.float32], name: str = "texts") -> None:
    """InternalError, naming the row, where a graph gave a component that is no number."""
    finite = np.isfinite(vectors)
    if not np.logical_and.reduce(finite, axis=None):  # as `all`, by way of less Python
        bad = ~finite.all(axis=1)
        raise InternalError(f"the encoder gave no finite vector for {name}[{int(bad.argmax())}]")


def finish(
    vectors: NDArray[np.float32],
    *,
    dimensions: int,
    normalized: bool,
    dtype: Dtype,
    int8_limit: float,
) -> Output:
    """Vectors, float32 (n, full dimensions), as their first `dimensions` components in `dtype`.

    A cut vector is brought back to length 1 where the space is normalised (Kusupati et al. 2022,
    Matryoshka Representation Learning). They must be finite: see check_finite.
    """
    full = vectors.shape[1]
    if dimensions < full:
        vectors = vectors[:, :dimensions]
        if normalized:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, 1e-12)
    if dtype == "float32":
        return Output(vectors, dtype)
    if dtype == "float16":
        limit = np.finfo(np.float16).max  # an unnormalised component may be larger: clip, never inf
        return Output(np.clip(vectors, -limit, limit).astype(np.float16), dtype)
    if dtype == "ubinary":
        return Output(np.packbits(vectors > 0, axis=1), dtype)
    # The limit was calibrated at full width; a unit vector of fewer components has larger ones.
    widening = (full / dimensions) ** 0.5 if normalized else 1.0
    scale = int8_limit * widening / 127
    return Output(np.clip(np.rint(vectors / scale), -127, 127).astype(np.int8), dtype, scale)
