"""Sparse: for each text, a weight for each word of a vocabulary.

The nodes are in `graph.lexical`, for all words, and in `graph.token_weights`, for the text's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.manifest import Output, Prompts, SpaceParts
from trimtab.errors import ExportError
from trimtab.kinds import Role, Similarity
from trimtab.outputs.sparse import SparseSettings
from trimtab.values.column import Column, Columns
from trimtab_export.graph import lexical, token_weights
from trimtab_export.graph.head import Grafter
from trimtab_export.graph.lexical import LanguageHead
from trimtab_export.kinds.making import OutputMaker
from trimtab_export.source import Dense, Source, SourceOutput

NAME = "sparse"
# The weights of texts with a prompt, float32 (n, vocabulary), by the source's library.
Weigh = Callable[[list[str], str], NDArray[np.float32]]


@dataclass(frozen=True)
class TokenWeights:
    """Scores only the tokens of a text: a layer of one number, and the size of the vocabulary."""

    layer: Dense
    vocabulary: int


@dataclass(frozen=True)
class TokenTable:
    """Weights of a text's own tokens, float32 (vocabulary,), whatever their states are. Special tokens have
    none: as many as `before` and `after` say stand around a text."""

    table: NDArray[np.float32]
    before: int
    after: int


@dataclass(frozen=True)
class SparseHead:
    """What makes weights: of all words or of a text's own tokens, from their states, or by a table.

    With a table, `settings` are those of the vectors that its own are compared with.
    """

    scores: LanguageHead | TokenWeights | TokenTable
    settings: SparseSettings

    @property
    def dimensions(self) -> int:
        """The size of the vocabulary."""
        of = self.scores
        if isinstance(of, TokenTable):
            return len(of.table)
        return of.vocabulary if isinstance(of, TokenWeights) else len(of.words)


def output(
    head: SparseHead, weigh: Weigh, prompts: Prompts, *, similarity: Similarity, space_parts: SpaceParts
) -> SourceOutput:
    """The sparse vectors of a source, whose own result `weigh` gives."""

    def reference(texts: list[Any], role: Role) -> Columns:
        return columns(weigh(texts, prompts.of(role)))

    declared = Output(
        name=NAME,
        kind=SparseMaker.kind,
        space="",
        space_parts=space_parts,
        dimensions=head.dimensions,
        similarity=similarity,
        pooling=None,
        normalized=False,
        settings={
            name: value
            for name, value in msgspec.to_builtins(head.settings).items()
            if value not in (None, False, [], ())
        },
    )
    return SourceOutput(declared, head, reference)


def columns(weights: NDArray[np.float32]) -> Columns:
    """The entries of weights, (n, vocabulary), as a graph's columns."""
    rows, places = np.nonzero(weights > 0)
    offsets = np.searchsorted(rows, np.arange(len(weights) + 1)).astype(np.int64)
    return {
        f"{NAME}.indices": Column(places.astype(np.int32), offsets),
        f"{NAME}.values": Column(weights[rows, places], offsets),
    }


class SparseMaker(OutputMaker):
    """Sparse vectors, by the head of a masked language model or by a weight for each token."""

    kind: ClassVar[str] = "sparse"

    def derive(self, source: Source) -> SourceOutput:
        """Only a source that has a language head gives them, and that is read with the source."""
        raise ExportError(
            f"{source.architecture} has no head of a masked language model, which sparse vectors are made "
            "with: give the folder of the whole model (...ForMaskedLM), or of a SparseEncoder"
        )

    def graft(self, grafter: Grafter, states: str, output: SourceOutput) -> Sequence[Any]:
        """The weights of all words, or of a text's tokens, as CSR."""
        head: SparseHead = output.head
        name, of = output.declared.name, head.scores
        if isinstance(of, TokenWeights):
            scores = grafter.token_scores(states, of.layer)
            token_weights.entries(grafter, scores, name, of.vocabulary, head.settings.stop_tokens)
        elif isinstance(of, TokenTable):
            weights = lexical.looked_up(grafter, of.table, of.before, of.after)
            as_it_is = msgspec.structs.replace(head.settings, activation="relu", pooling="max")
            lexical.entries(grafter, weights, name, as_it_is)
        else:
            pooled = lexical.weights(grafter, states, of, head.settings)
            lexical.entries(grafter, pooled, name, head.settings)
        return self.values(output.declared)
