"""Several vectors for each item: pooled, cut, normalised, quantised; and compared by MaxSim."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from trimtab.errors import InternalError
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import multi_vector
from trimtab.values.column import Column, Columns, stacked
from trimtab.values.multi_vector import MultiVectors
from trimtab_server.outputs import dense, token_pooling
from trimtab_server.outputs.kind import OutputKind, OutputSpace, Scores, Shape, TensorForm, Tensors


class MultiVectorKind(OutputKind[MultiVectors]):
    """Ragged rows, float32 (rows, dimensions), with offsets of items."""

    kind: ClassVar[str] = "multi_vector"
    form: ClassVar[str] = "multi_vector"
    several: ClassVar[bool] = True

    def similarity(self, space: OutputSpace) -> str:
        """MaxSim, of cosines or dot products."""
        return "maxsim"

    def check(self, space: OutputSpace, shape: Shape) -> None:
        """Each row is a dense vector, so what these refuse is refused."""
        dense.check(space, shape)

    def reduced(
        self, columns: Columns, names: Sequence[str], space: OutputSpace, shape: Shape
    ) -> Iterator[Columns | None]:
        """Pools tokens, item by item."""
        (name,) = names
        column, most = columns[name], shape.max_vectors or 0
        items = []
        for place in range(len(column)):
            for rows in token_pooling.pooled(column.item(place), most, unit=bool(space.normalized)):
                if rows is None:
                    yield None
                else:
                    items.append(rows)
        yield {**columns, name: stacked(items)}

    def finish(
        self, columns: Columns, names: Sequence[str], space: OutputSpace, shape: Shape
    ) -> MultiVectors:
        """All rows in the requested dimensions and dtype, with the offsets of items."""
        whole = _whole(columns[names[0]], space)
        packed = dense.finish(
            whole.vectors,
            dimensions=shape.dimensions or space.dimensions,
            normalized=bool(space.normalized),
            dtype=shape.dtype,
            int8_limit=space.int8_limit or 0.0,
        )
        return MultiVectors(packed.matrix, whole.offsets, packed.dtype, packed.scale)

    def write(self, message: pb.Output, finished: MultiVectors) -> None:
        """As ragged rows."""
        multi_vector.write(message.multi_vector, finished)

    def tensor_forms(self, name: str, space: OutputSpace) -> Sequence[TensorForm]:
        """token_vectors, a vector a row, and token_offsets: where the rows of an item begin. Of an output
        with a name of its own, NAME_vectors and NAME_offsets."""
        prefix = "token" if name == self.kind else name
        return (
            TensorForm(f"{prefix}_vectors", "float32", (-1, space.dimensions)),
            TensorForm(f"{prefix}_offsets", "int32", (-1,)),
        )

    def tensors(self, finished: MultiVectors) -> Tensors:
        """(rows, d) in the dtype, and int32 (n + 1,)."""
        return finished.vectors, finished.offsets.astype(np.int32)

    def score(self, query: Columns, documents: Columns, names: Sequence[str], space: OutputSpace) -> Scores:
        """By MaxSim."""
        (name,) = names
        return multi_vector.maxsim(_whole(query[name], space), _whole(documents[name], space))


def _whole(column: Column, space: OutputSpace) -> MultiVectors:
    if column.offsets is None:
        raise InternalError(f"the graph of {space.title} gave multi-vectors without offsets")
    return MultiVectors(column.values, column.offsets)
