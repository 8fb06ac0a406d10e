"""Scores: what a classification head gives, and the activation after it."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.manifest import Output, SpaceParts, Tensor
from trimtab.kinds import Role
from trimtab.outputs.scores import Activation
from trimtab.values.column import Column, Columns
from trimtab_export.graph.head import Grafter
from trimtab_export.kinds.making import OutputMaker
from trimtab_export.source import SourceOutput

SCORES, LOGITS = "scores", "logits"
OPERATORS = {"sigmoid": "Sigmoid", "identity": "Identity"}
# The source's own scores of items with an activation, float32 (n, labels).
Predict: TypeAlias = Callable[[list[Any], Activation], NDArray[np.float32]]


def outputs(
    labels: Sequence[str], activation: Activation, predict: Predict, parts: SpaceParts
) -> tuple[SourceOutput, ...]:
    """The scores of a source and, if an activation makes them, the logits before it."""
    found = [(SCORES, activation)]
    if activation != "identity":
        found.append((LOGITS, "identity"))
    return tuple(_output(name, labels, each, predict, parts) for name, each in found)


def _output(
    name: str, labels: Sequence[str], activation: Activation, predict: Predict, parts: SpaceParts
) -> SourceOutput:
    def reference(items: list[Any], role: Role) -> Columns:
        return {name: Column(predict(items, activation))}

    declared = Output(
        name=name, kind=ScoresMaker.kind, space="", space_parts=parts, dimensions=len(labels),
        similarity="dot", pooling=None, normalized=False,
        settings={"labels": list(labels), "activation": activation},
    )  # fmt: skip
    return SourceOutput(declared, activation, reference)


class ScoresMaker(OutputMaker):
    """Scores, under a tensor name that no converter uses: a graph may have its own `logits`."""

    kind: ClassVar[str] = "scores"

    def tensors(self, declared: Output) -> dict[str, Tensor]:
        """Where graphs give them."""
        return {declared.name: Tensor(name=f"trimtab.{declared.name}")}

    def graft(self, grafter: Grafter, states: str, output: SourceOutput) -> Sequence[Any]:
        """The activation, after the logits, float32 (n, labels)."""
        (tensor,) = self.tensors(output.declared).values()
        if output.head == "softmax":
            grafter.node("Softmax", states, output=tensor.name, axis=1)
        else:
            grafter.node(OPERATORS[output.head], states, output=tensor.name)
        return self.values(output.declared)
