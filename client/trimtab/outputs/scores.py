"""Scores: a number for each label of an item, such as how well a passage answers a query."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from trimtab.outputs.form import ColumnForm, DeclaredOutput, OutputForm

# What a graph makes of its logits: each label for itself between 0 and 1, all labels together 1, or nothing.
Activation = Literal["sigmoid", "softmax", "identity"]
MOST_LABELS = 4096


class ScoreSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of scores in a manifest. The labels name the columns, in order."""

    labels: Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(min_length=1, max_length=MOST_LABELS)]
    activation: Activation


class ScoresForm(OutputForm):
    """One row of scores per item: float32 (n, labels)."""

    kind: ClassVar[str] = "scores"

    @classmethod
    def columns(cls, declared: DeclaredOutput) -> tuple[ColumnForm, ...]:
        """The column of the scores."""
        return (ColumnForm(declared.name, declared.dimensions),)

    @classmethod
    def doubts(cls, declared: DeclaredOutput) -> Iterator[tuple[bool, str]]:
        """Whether labels and columns differ, settings are invalid, or it says what only vectors have."""
        try:
            settings = msgspec.convert(declared.settings, ScoreSettings)
        except msgspec.ValidationError as error:
            yield True, f"has settings that cannot be: {error}"
            return
        labels = len(settings.labels)
        yield labels != declared.dimensions, f"has {labels} labels and {declared.dimensions} columns"
        yield declared.normalized, "is normalised, which scores are not"
        yield declared.int8_limit is not None, "has an int8_limit, which scores have not"


def labels_of(declared: DeclaredOutput) -> list[str]:
    """What the columns of an output mean, in order; empty if it is of another kind."""
    if declared.kind != ScoresForm.kind:
        return []
    return msgspec.convert(declared.settings, ScoreSettings).labels
