"""A toy kind of output: of each item a sparse vector with an entry a token, its first hidden component."""

from collections.abc import Iterator
from typing import ClassVar

from trimtab.outputs.form import ColumnForm, DeclaredOutput, OutputForm


class Counts(OutputForm):
    """Two columns of several rows each: places, int32, and numbers, float32."""

    kind: ClassVar[str] = "counts"

    @classmethod
    def columns(cls, declared: DeclaredOutput) -> tuple[ColumnForm, ...]:
        places = f"{declared.name}.places"
        return (
            ColumnForm(places, dtype="int32", several=True),
            ColumnForm(f"{declared.name}.numbers", several=True, places=places),
        )

    @classmethod
    def doubts(cls, declared: DeclaredOutput) -> Iterator[tuple[bool, str]]:
        yield declared.normalized, "is normalised, which numbers are not"
