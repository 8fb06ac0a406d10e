"""Sparse vectors: checked, packed, scored by their dot product. Pure functions."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from trimtab.errors import InternalError, InvalidArgument
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import sparse
from trimtab.values.column import Columns
from trimtab.values.sparse import SparseVectors
from trimtab_server.outputs.kind import OutputKind, OutputSpace, Scores, Shape, TensorForm, Tensors

LEAST, MOST = (float(np.finfo(np.float16).smallest_subnormal), float(np.finfo(np.float16).max))


class SparseKind(OutputKind[SparseVectors]):
    """Vectors of `dimensions` components, of which the nonzero ones are kept."""

    kind: ClassVar[str] = "sparse"
    form: ClassVar[str] = "sparse"

    def check(self, space: OutputSpace, shape: Shape) -> None:
        """Refuse fewer dimensions, and dtypes that are made for dense vectors."""
        if shape.dimensions is not None:
            raise InvalidArgument(
                f"dimensions is {shape.dimensions}, and the sparse vectors of {space.title} cannot be cut: "
                "each of their dimensions is a word of its own. Leave dimensions out"
            )
        if shape.dtype not in sparse.NUMBERS:
            raise InvalidArgument(
                f"dtype is {shape.dtype}, and {space.title} gives sparse vectors: ask for "
                f"{' or '.join(sparse.NUMBERS)}"
            )

    def finish(
        self, columns: Columns, names: Sequence[str], space: OutputSpace, shape: Shape
    ) -> SparseVectors:
        """The vectors in the dtype. InternalError if the graph did not give a valid CSR matrix."""
        vectors = _vectors(columns, names, space)
        wrong = sparse.fault(vectors)
        if not wrong and not (vectors.values > 0).all():
            wrong = "have values that are not above 0"
        if wrong:
            raise InternalError(f"the graph of {space.title} gave wrong numbers: its sparse vectors {wrong}")
        if shape.dtype == "float16":  # clipped: no entry becomes 0 or infinite
            halved = np.clip(vectors.values, LEAST, MOST).astype(np.float16)
            return SparseVectors(vectors.indptr, vectors.indices, halved, vectors.dimensions)
        return vectors

    def write(self, message: pb.Output, finished: SparseVectors) -> None:
        """As a CSR matrix."""
        sparse.write(message.sparse, finished)

    def tensor_forms(self, name: str, space: OutputSpace) -> Sequence[TensorForm]:
        """NAME_indices and NAME_values, and NAME_offsets: where the entries of an item begin."""
        return (
            TensorForm(f"{name}_indices", "int32", (-1,)),
            TensorForm(f"{name}_values", "float32", (-1,)),
            TensorForm(f"{name}_offsets", "int32", (-1,)),
        )

    def tensors(self, finished: SparseVectors) -> Tensors:
        """int32 (entries,), the dtype's (entries,), and int32 (n + 1,)."""
        return finished.indices, finished.values, finished.indptr.astype(np.int32)

    def score(self, query: Columns, documents: Columns, names: Sequence[str], space: OutputSpace) -> Scores:
        """The dot product; by cosine, divided by both lengths."""
        asked, found = _vectors(query, names, space), _vectors(documents, names, space)
        scores = sparse.dot(asked[0], found)
        if space.similarity != "cosine":
            return scores
        both = sparse.lengths(asked)[0] * sparse.lengths(found)
        cosines: Scores = np.divide(scores, both, out=np.zeros_like(scores), where=both > 0)
        return cosines


def _vectors(columns: Columns, names: Sequence[str], space: OutputSpace) -> SparseVectors:
    indices, values = (columns[name] for name in names)
    if values.offsets is None:
        raise InternalError(f"the graph of {space.title} gave sparse vectors without offsets")
    return SparseVectors(values.offsets, indices.values, values.values, space.dimensions)
