"""Sparse: one vector per item with few nonzero components, such as a weight for each word of a vocabulary."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from trimtab.outputs.form import ColumnForm, DeclaredOutput, OutputForm

# What becomes of a positive number before it is a weight; numbers below 0 become 0.
SparseActivation = Literal["relu", "log1p", "log1p-log1p"]
SparsePooling = Literal["max", "sum"]  # over the tokens of a text
SIMILARITIES = ("dot", "cosine")


class SparseSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of sparse vectors in a manifest; all of them affect vectors.

    activation: log1p is SPLADE's log(1 + relu(x)); log1p-log1p takes the logarithm twice.
    pooling: how a component is made from those of a text's tokens.
    top_k: how many entries a vector keeps, the largest ones; None: all.
    per_token: only a text's own tokens have weights, so a vector has at most as many entries as tokens.
    stop_tokens: components that are always 0, in order.
    """

    activation: SparseActivation
    pooling: SparsePooling
    top_k: Annotated[int, Meta(ge=1)] | None = None
    per_token: bool = False
    stop_tokens: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=1 << 16)] = ()


class SparseForm(OutputForm):
    """Two columns of several rows each, an entry a row: indices, int32, rising within an item; values,
    float32, above 0."""

    kind: ClassVar[str] = "sparse"

    @classmethod
    def columns(cls, declared: DeclaredOutput) -> tuple[ColumnForm, ...]:
        """The indices and the values. An item has at most `top_k` of them; without it, one for each of its
        units if weights are `per_token`, or else as many as dimensions."""
        widest = 0 if declared.settings.get("per_token") else declared.dimensions
        most = declared.settings.get("top_k") or widest
        indices = f"{declared.name}.indices"
        return (
            ColumnForm(indices, dtype="int32", several=True, most=most),
            ColumnForm(f"{declared.name}.values", several=True, most=most, places=indices),
        )

    @classmethod
    def doubts(cls, declared: DeclaredOutput) -> Iterator[tuple[bool, str]]:
        """Whether settings are invalid or do not fit the dimensions, or the output claims what only dense
        vectors have."""
        try:
            settings = msgspec.convert(declared.settings, SparseSettings)
        except msgspec.ValidationError as error:
            yield True, f"has settings that cannot be: {error}"
            return
        yield declared.normalized, "is normalised, and sparse vectors are not"
        yield declared.int8_limit is not None, "has a range of int8, and sparse vectors have none"
        unknown = declared.similarity not in SIMILARITIES
        yield unknown, f"compares by {declared.similarity}; sparse vectors by {' or '.join(SIMILARITIES)}"
        few = (settings.top_k or 1) > declared.dimensions
        yield few, f"keeps {settings.top_k} entries of {declared.dimensions} dimensions"
        stop = settings.stop_tokens
        rising = all(one < other for one, other in pairwise(stop))
        yield not rising, "has stop_tokens that do not rise"
        yield bool(stop) and stop[-1] >= declared.dimensions, "has stop_tokens beyond its dimensions"
