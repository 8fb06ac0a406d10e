"""Dense: one vector per item."""

from collections.abc import Iterator
from typing import ClassVar

from trimtab.outputs.form import ColumnForm, DeclaredOutput, OutputForm

# The largest component of a vector of length 1, with float32's rounding.
LONGEST_UNIT = 1.001
MOST_DIMENSIONS = 1 << 16


class DenseForm(OutputForm):
    """One vector per item: float32 (n, dimensions)."""

    kind: ClassVar[str] = "dense"

    @classmethod
    def columns(cls, declared: DeclaredOutput) -> tuple[ColumnForm, ...]:
        """The column of the vectors."""
        return (ColumnForm(declared.name, declared.dimensions, unit=declared.normalized),)

    @classmethod
    def doubts(cls, declared: DeclaredOutput) -> Iterator[tuple[bool, str]]:
        """Whether dimensions are too many, the range for int8 too wide, or settings those of other kinds."""
        wide, limit = declared.dimensions > MOST_DIMENSIONS, declared.int8_limit or 0.0
        yield wide, f"has {declared.dimensions} dimensions, more than {MOST_DIMENSIONS}"
        yield (
            declared.normalized and limit > LONGEST_UNIT,
            f"has vectors of length 1 and the int8_limit {limit}",
        )
        unknown = ", ".join(sorted(declared.settings))
        yield bool(unknown), f"has the settings {unknown}, which dense vectors have not"
