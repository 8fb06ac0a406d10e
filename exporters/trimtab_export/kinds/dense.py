"""Dense: one vector per item, from pooled token states. `trimtab_export.graph.head` has the nodes."""

from collections.abc import Sequence
from typing import Any, ClassVar

from trimtab.artifacts.manifest import Output, Prompts, SpaceParts, Tensor
from trimtab.kinds import Role, Similarity
from trimtab.values.column import Column, Columns
from trimtab_export.graph import head as heads
from trimtab_export.graph.head import Grafter
from trimtab_export.kinds.making import OutputMaker
from trimtab_export.source import Embed, Head, SourceOutput

NAME = "dense"


def output(
    head: Head,
    embed: Embed,
    prompts: Prompts,
    *,
    dimensions: int,
    similarity: Similarity,
    normalized: bool,
    space_parts: SpaceParts,
) -> SourceOutput:
    """The dense vectors of a source, whose own result `embed` gives."""

    def reference(texts: list[Any], role: Role) -> Columns:
        return {NAME: Column(embed(texts, prompts.of(role)))}

    declared = Output(
        name=NAME,
        kind=DenseMaker.kind,
        space="",
        space_parts=space_parts,
        dimensions=dimensions,
        similarity=similarity,
        pooling=head.pooling,
        normalized=normalized,
    )
    return SourceOutput(declared, head, reference)


class DenseMaker(OutputMaker):
    """Dense vectors, under the tensor name `embeddings`."""

    kind: ClassVar[str] = "dense"
    in_int8: ClassVar[bool] = True

    def tensors(self, declared: Output) -> dict[str, Tensor]:
        """Where graphs give them."""
        return {declared.name: Tensor(name=heads.OUTPUT)}

    def graft(self, grafter: Grafter, states: str, output: SourceOutput) -> Sequence[Any]:
        """Pooling, dense layers, normalisation."""
        return heads.dense(grafter, states, output.head, output.declared.dimensions)
