"""The toy kind of output in the server."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InvalidArgument
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.column import Columns
from trimtab_server.outputs.kind import OutputKind, OutputSpace, Scores, Shape


class Found(NamedTuple):
    """In the layout of a CSR matrix."""

    offsets: NDArray[np.int64]
    places: NDArray[np.int32]
    numbers: NDArray[np.float32]
    dimensions: int


class CountsKind(OutputKind[Found]):
    """Sparse numbers."""

    kind: ClassVar[str] = "counts"
    form: ClassVar[str] = "sparse"

    def check(self, space: OutputSpace, shape: Shape) -> None:
        if shape.dimensions is not None:
            raise InvalidArgument("counts have no fewer dimensions: leave dimensions out")

    def finish(self, columns: Columns, names: Sequence[str], space: OutputSpace, shape: Shape) -> Found:
        places, numbers = (columns[name] for name in names)
        assert numbers.offsets is not None
        return Found(numbers.offsets, places.values, numbers.values, space.dimensions)

    def write(self, message: pb.Output, finished: Found) -> None:
        sparse = message.sparse
        sparse.offsets = finished.offsets.astype("<i4").tobytes()
        sparse.indices = finished.places.astype("<i4").tobytes()
        sparse.values = finished.numbers.astype("<f4").tobytes()
        sparse.dtype = pb.DATA_TYPE_FLOAT32
        sparse.dimensions = finished.dimensions

    def score(self, query: Columns, documents: Columns, names: Sequence[str], space: OutputSpace) -> Scores:
        """The sum of products at places that both have."""
        places, numbers = names

        def long(columns: Columns, item: int) -> NDArray[np.float32]:
            found = np.zeros(space.dimensions, np.float32)
            np.add.at(found, columns[places].item(item), columns[numbers].item(item))
            return found

        return np.array([long(query, 0) @ long(documents, row) for row in range(len(documents[places]))])


COUNTS = CountsKind()
