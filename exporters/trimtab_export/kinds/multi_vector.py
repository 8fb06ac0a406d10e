"""Multi-vectors: a vector for each token that gives one, from the token states."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnx import TensorProto, helper

from trimtab.inputs.text import VECTORS
from trimtab_export.graph.head import Grafter
from trimtab_export.kinds.making import OutputMaker
from trimtab_export.source import Dense, Layer, SourceOutput

NAME = "multi_vector"


@dataclass(frozen=True)
class TokenHead:
    """What turns tokens' states into vectors.

    marked: the text's reading marks the tokens that give a vector; otherwise all but the first give one.
    """

    layers: tuple[Layer, ...]
    marked: bool = True


class MultiVectorMaker(OutputMaker):
    """Selects the states of the tokens that give a vector, and takes only these through the layers."""

    kind: ClassVar[str] = "multi_vector"
    in_int8: ClassVar[bool] = True

    def graft(self, grafter: Grafter, states: str, output: SourceOutput) -> Sequence[Any]:
        """The rows of all texts, one after another, and where each text's rows begin."""
        declared = output.declared
        if output.head.marked:
            grafter.read(helper.make_tensor_value_info(VECTORS, TensorProto.INT64, ["batch", "sequence"]))
            giving = VECTORS
        else:
            number = grafter.node("CumSum", "attention_mask", grafter.whole(1))
            later = grafter.node("Greater", number, grafter.whole(1))
            giving = grafter.node("Mul", grafter.node("Cast", later, to=TensorProto.INT64), "attention_mask")
        places = grafter.node("Transpose", grafter.node("NonZero", giving))
        rows = grafter.node("GatherND", states, places)
        for layer in output.head.layers:
            rows = grafter.dense(rows, layer) if isinstance(layer, Dense) else grafter.normalize(rows)
        grafter.node("Identity", rows, output=declared.name)
        counts = grafter.sum(giving, 1)
        ends = grafter.node("CumSum", counts, grafter.constant(np.int64(0)))
        grafter.node("Concat", grafter.whole([0]), ends, output=f"{declared.name}.offsets", axis=0)
        return self.values(declared)
