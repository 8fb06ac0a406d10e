"""Multi-vector: several vectors per item, one for each of its tokens, as ColBERT's."""

from collections.abc import Iterator
from typing import ClassVar

from trimtab.outputs.dense import LONGEST_UNIT, MOST_DIMENSIONS
from trimtab.outputs.form import ColumnForm, DeclaredOutput, OutputForm

# How two vectors may be compared: MaxSim takes the largest of such products.
PRODUCTS = ("cosine", "dot")


class MultiVectorForm(OutputForm):
    """Several vectors per item, at most one for each unit: float32 (rows, dimensions), and offsets."""

    kind: ClassVar[str] = "multi_vector"

    @classmethod
    def columns(cls, declared: DeclaredOutput) -> tuple[ColumnForm, ...]:
        """The column of the vectors."""
        return (ColumnForm(declared.name, declared.dimensions, several=True, unit=declared.normalized),)

    @classmethod
    def doubts(cls, declared: DeclaredOutput) -> Iterator[tuple[bool, str]]:
        """Whether dimensions are too many, the range for int8 too wide, the similarity no product, or
        settings those of other kinds."""
        wide, limit = declared.dimensions > MOST_DIMENSIONS, declared.int8_limit or 0.0
        yield wide, f"has {declared.dimensions} dimensions, more than {MOST_DIMENSIONS}"
        yield (
            declared.normalized and limit > LONGEST_UNIT,
            f"has vectors of length 1 and the int8_limit {limit}",
        )
        yield (
            declared.similarity not in PRODUCTS,
            f"is compared by {declared.similarity}; MaxSim takes {' or '.join(PRODUCTS)}",
        )
        yield (
            declared.similarity == "cosine" and not declared.normalized,
            "is compared by cosine, and its vectors are not of length 1",
        )
        unknown = ", ".join(sorted(declared.settings))
        yield bool(unknown), f"has the settings {unknown}, which multi-vectors have not"
