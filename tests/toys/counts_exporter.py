"""The toy kind of output in the exporter: nodes behind the token states."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from onnx import TensorProto

from trimtab.artifacts.manifest import Output
from trimtab_export.graph.head import Grafter
from trimtab_export.kinds.making import OutputMaker
from trimtab_export.source import Source, SourceOutput

VOCABULARY = 1000


class CountsMaker(OutputMaker):
    """The first component of each real token's state, at the place of the token's id."""

    kind: ClassVar[str] = "counts"

    def derive(self, source: Source) -> SourceOutput:
        declared = Output(
            name="counts", kind=self.kind, space="", space_parts=source.space_parts, dimensions=VOCABULARY,
            similarity="dot", pooling=None, normalized=False,
        )  # fmt: skip
        return SourceOutput(declared, head=None)

    def graft(self, grafter: Grafter, states: str, output: SourceOutput) -> Sequence[Any]:
        whole = lambda *values: grafter.constant(np.array(values, np.int64))  # noqa: E731
        real = grafter.node("Transpose", grafter.node("NonZero", "attention_mask"))
        tokens = grafter.node("GatherND", states, real)
        first = grafter.node("Gather", tokens, grafter.constant(np.int64(0)), axis=1)
        grafter.node("Identity", first, output="counts.numbers")
        ids = grafter.node("GatherND", "input_ids", real)
        grafter.node("Cast", ids, output="counts.places", to=TensorProto.INT32)
        counts = grafter.node("ReduceSum", "attention_mask", whole(1), keepdims=0)
        ends = grafter.node("CumSum", counts, grafter.constant(np.int64(0)))
        grafter.node("Concat", whole(0), ends, output="counts.offsets", axis=0)
        return self.values(output.declared)


COUNTS = CountsMaker()
