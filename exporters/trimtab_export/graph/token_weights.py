"""A weight for each token of a text, in a graph: of equal tokens of a text the largest weight, as CSR."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from trimtab_export.graph.head import Grafter


def entries(grafter: Grafter, scores: str, name: str, vocabulary: int, stop_tokens: Sequence[int]) -> None:
    """The CSR tensors NAME.indices, NAME.values and NAME.offsets.

    scores: of each token, float32 (n, length). Scores above 0 are weights, except those of padding and of
    `stop_tokens`. Tokens are numbers below `vocabulary`.
    """
    mask = grafter.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    counted = grafter.node("Mul", scores, mask)
    for token in stop_tokens:
        other = grafter.node("Not", grafter.node("Equal", "input_ids", grafter.whole(token)))
        counted = grafter.node("Mul", counted, grafter.node("Cast", other, to=TensorProto.FLOAT))
    where = grafter.node("NonZero", grafter.node("Greater", counted, grafter.constant(np.float32(0))))
    pairs = grafter.node("Transpose", where)
    weights = grafter.node("GatherND", counted, pairs)
    text = grafter.node("Gather", where, grafter.whole(0), axis=0)
    # A number for each pair of a text and a token, in the order of CSR.
    width = grafter.whole(vocabulary)
    keys = grafter.node("Add", grafter.node("Mul", text, width), grafter.node("GatherND", "input_ids", pairs))
    # By falling weight, the first of several equal keys has the largest.
    falling, order = grafter.results("TopK", 2, weights, grafter.node("Shape", weights), axis=0, sorted=1)
    rising, first = grafter.results("Unique", 2, grafter.node("Gather", keys, order), axis=0, sorted=1)
    grafter.node("Gather", falling, first, output=f"{name}.values")
    grafter.node("Cast", grafter.node("Mod", rising, width), output=f"{name}.indices", to=TensorProto.INT32)
    texts = grafter.node("Gather", grafter.node("Shape", scores), grafter.whole(0), axis=0)
    number = grafter.unsqueezed(grafter.node("Range", grafter.whole(0), texts, grafter.whole(1)), 1)
    owned = grafter.node("Equal", number, grafter.node("Div", rising, width))
    counts = grafter.sum(grafter.node("Cast", owned, to=TensorProto.INT64), 1)
    ends = grafter.node("CumSum", counts, grafter.whole(0))
    grafter.node("Concat", grafter.whole([0]), ends, output=f"{name}.offsets", axis=0)
