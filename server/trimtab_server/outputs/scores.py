"""Scores, a number for each label of an item. Pure functions."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import InvalidArgument, Unimplemented
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import dense
from trimtab.values.column import Columns
from trimtab_server.outputs.kind import OutputKind, OutputSpace, Scores, Shape, TensorForm, Tensors

FLOATS = ("float32", "float16")


class Labelled(msgspec.Struct, frozen=True):
    """Scores, one row an item, one column a label."""

    scores: NDArray[np.floating]
    dtype: Literal["float32", "float16"]


class ScoresKind(OutputKind[Labelled]):
    """Scores, float32 (n, labels). The graph has applied the activation."""

    kind: ClassVar[str] = "scores"
    form: ClassVar[str] = "scores"

    def check(self, space: OutputSpace, shape: Shape) -> None:
        """Refuse what only vectors have."""
        if shape.dimensions is not None:
            raise InvalidArgument(
                f"dimensions is {shape.dimensions}, and {space.title} gives scores, a column for each label: "
                "leave dimensions out"
            )
        if shape.dtype not in FLOATS:
            raise InvalidArgument(
                f"dtype is {shape.dtype}, and {space.title} gives scores, which have no range for it: ask "
                f"for {' or '.join(FLOATS)}"
            )

    def finish(self, columns: Columns, names: Sequence[str], space: OutputSpace, shape: Shape) -> Labelled:
        """The scores, in the dtype."""
        (name,) = names
        scores = columns[name].values
        if shape.dtype == "float16":
            limit = np.finfo(np.float16).max
            return Labelled(np.clip(scores, -limit, limit).astype(np.float16), "float16")
        return Labelled(scores, "float32")

    def write(self, message: pb.Output, finished: Labelled) -> None:
        """As a matrix."""
        dense.write(message.scores, finished.scores, finished.dtype)

    def tensor_forms(self, name: str, space: OutputSpace) -> Sequence[TensorForm]:
        """Under the output's own name."""
        return (TensorForm(name, "float32", (-1, space.dimensions)),)

    def tensors(self, finished: Labelled) -> Tensors:
        """The dtype's (n, labels)."""
        return (finished.scores,)

    def similarity(self, space: OutputSpace) -> str:
        """Nothing is compared: the encoder has read both texts."""
        return "cross-encoder"

    def check_pairs(self, space: OutputSpace) -> None:
        """Refuse to rank by several labels."""
        if space.dimensions != 1:
            raise Unimplemented(
                f"{space.title} gives scores of {space.dimensions} labels, and candidates are ranked by one: "
                "send pairs to Embed for all of them, or name an encoder with one label"
            )

    def score_pairs(self, columns: Columns, names: Sequence[str], space: OutputSpace) -> Scores:
        """The only label's scores."""
        (name,) = names
        scores: Scores = columns[name].values[:, 0]
        return scores
