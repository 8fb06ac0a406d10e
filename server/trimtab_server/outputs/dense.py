"""Dense vectors, one for each item: cut, normalised, quantised. Pure functions."""

from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import FailedPrecondition, InvalidArgument
from trimtab.kinds import Dtype
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import dense, similarity
from trimtab.values.column import Columns
from trimtab_server.outputs.kind import OutputKind, OutputSpace, Scores, Shape, TensorForm, Tensors

# The engine's name for the mean hidden states that some adapters read besides the vectors.
STATES = "states"


class Matrix(msgspec.Struct, frozen=True):
    """Numbers of `dtype`, one row an item; for int8, component = value * scale."""

    matrix: NDArray[np.generic]
    dtype: Dtype
    scale: float = 0.0


class DenseKind(OutputKind[Matrix]):
    """Vectors, float32 (n, dimensions)."""

    kind: ClassVar[str] = "dense"
    form: ClassVar[str] = "dense"

    def check(self, space: OutputSpace, shape: Shape) -> None:
        """See the function `check`."""
        check(space, shape)

    def finish(self, columns: Columns, names: Sequence[str], space: OutputSpace, shape: Shape) -> Matrix:
        """The vectors' first dimensions, in the dtype."""
        vectors, dimensions = columns[names[0]].values, shape.dimensions or space.dimensions
        if shape.dtype == "float32" and dimensions == vectors.shape[1]:
            return Matrix(vectors, shape.dtype)
        return finish(
            vectors,
            dimensions=dimensions,
            normalized=bool(space.normalized),
            dtype=shape.dtype,
            int8_limit=space.int8_limit or 0.0,
        )

    def write(self, message: pb.Output, finished: Matrix) -> None:
        """As a matrix."""
        dense.write(message.dense, finished.matrix, finished.dtype, finished.scale)

    def tensor_forms(self, name: str, space: OutputSpace) -> Sequence[TensorForm]:
        """One matrix, called as the output."""
        return (TensorForm(name, "float32", (-1, space.dimensions)),)

    def tensors(self, finished: Matrix) -> Tensors:
        """(n, d) in the dtype; ubinary as uint8 (n, d / 8)."""
        return (finished.matrix.astype(dense.STORAGE[finished.dtype], copy=False),)

    def score(self, query: Columns, documents: Columns, names: Sequence[str], space: OutputSpace) -> Scores:
        """By the similarity of the space."""
        (name,) = names
        near = space.similarity or "cosine"  # of an encoder's own space it is known
        return similarity.scores(query[name].values[0], documents[name].values, near)


def check(space: OutputSpace, shape: Shape) -> None:
    """Refuse more dimensions than there are, bits that do not fill bytes, and what needs an unknown range
    or length."""
    wanted = shape.dimensions or space.dimensions
    if wanted > space.dimensions:
        raise InvalidArgument(
            f"dimensions is {shape.dimensions}, {space.title} has {space.dimensions}: ask for that many "
            "or fewer"
        )
    if shape.dtype == "ubinary" and wanted % 8:
        raise InvalidArgument(
            f"ubinary packs 8 dimensions into a byte: dimensions must be a multiple of 8, not {wanted}"
        )
    if shape.dtype == "int8" and space.int8_limit is None:
        raise FailedPrecondition(
            f"the range of int8 {space.uncalibrated}: ask for float32 or float16, or {space.cure}"
        )
    if wanted < space.dimensions and space.normalized is None:
        raise FailedPrecondition(
            f"vectors of {space.title} cannot be cut: whether they are of length 1 only its encoder "
            f"tells, which this server does not have. Ask for all dimensions, or {space.cure}"
        )


def finish(
    vectors: NDArray[np.float32],
    *,
    dimensions: int,
    normalized: bool,
    dtype: Dtype,
    int8_limit: float,
) -> Matrix:
    """Vectors, float32 (n, full dimensions), as their first `dimensions` components in `dtype`.

    A cut vector is brought back to length 1 if the space is normalised (Kusupati et al. 2022, Matryoshka
    Representation Learning). They must be finite.
    """
    full = vectors.shape[1]
    if dimensions < full:
        vectors = vectors[:, :dimensions]
        if normalized:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, 1e-12)
    if dtype == "float32":
        return Matrix(vectors, dtype)
    if dtype == "float16":
        limit = np.finfo(np.float16).max  # an unnormalised component may be larger: clip, never inf
        return Matrix(np.clip(vectors, -limit, limit).astype(np.float16), dtype)
    if dtype == "ubinary":
        return Matrix(np.packbits(vectors > 0, axis=1), dtype)
    # The limit was calibrated at full width; a unit vector of fewer components has larger ones.
    widening = (full / dimensions) ** 0.5 if normalized else 1.0
    scale = int8_limit * widening / 127
    return Matrix(np.clip(np.rint(vectors / scale), -127, 127).astype(np.int8), dtype, scale)
