"""A masked language model's head in a graph: of each text, a weight for each word of the vocabulary, as CSR.

The scores of all words for all tokens of a batch would take gigabytes. So words are scored in slices, and of
each slice only the largest score over a text's tokens is kept, or the sum.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from trimtab.outputs.sparse import SparseSettings
from trimtab_export.graph.head import Grafter

Floats = NDArray[np.float32]
Gate = Literal["gelu", "relu"]

# Words that are scored at a time: wide enough for fast products, and narrow enough that their scores take no
# more memory than the attention did.
SLICE = 1024


@dataclass(frozen=True)
class LanguageHead:
    """What a masked language model makes of a token's state: a dense layer, an activation, a layer norm, and
    a score for each word.

    weight (hidden, out) and bias (out,) are the dense layer's; scale and shift (out,) the norm's; words
    (vocabulary, out) and word_bias (vocabulary,) give the scores. All are float32.
    """

    weight: Floats
    bias: Floats
    gate: Gate
    scale: Floats
    shift: Floats
    epsilon: float
    words: Floats
    word_bias: Floats

    def arrays(self) -> Iterator[tuple[str, Floats]]:
        """All numbers, by name; what no number shows is in the names."""
        for name in ("weight", "bias", "scale", "shift", "words", "word_bias"):
            yield f"language.{self.gate}.{self.epsilon:g}.{name}", getattr(self, name)


def weights(grafter: Grafter, states: str, head: LanguageHead, settings: SparseSettings) -> str:
    """Of each text the pooled scores, float32 (n, vocabulary); those above 0 become weights by `entries`.

    For max pooling these are the largest scores themselves: the activation never changes their order.
    """
    words, bias = head.words.copy(), head.word_bias.copy()
    words[list(settings.stop_tokens)], bias[list(settings.stop_tokens)] = 0, 0  # and so never above 0
    hidden = _transformed(grafter, states, head)
    most = settings.pooling == "max"
    if most:
        hidden = _without_padding(grafter, hidden)
    else:
        mask = grafter.node("Cast", "attention_mask", to=TensorProto.FLOAT)
        row = grafter.unsqueezed(mask, 1)  # (n, 1, length): a product with it sums over real tokens
    pooled = []
    for start in range(0, len(words), SLICE):
        scores = grafter.node("MatMul", hidden, grafter.constant(words[start : start + SLICE].T.copy()))
        if most:
            pooled.append(grafter.largest(scores, 1))
            continue
        above = grafter.node(
            "Relu", grafter.node("Add", scores, grafter.constant(bias[start : start + SLICE]))
        )
        for _ in range(settings.activation.count("log1p")):
            above = grafter.node("Log", grafter.node("Add", above, grafter.constant(np.float32(1))))
        pooled.append(grafter.node("MatMul", row, above))
    if not most:
        joined = grafter.node("Concat", *pooled, axis=2)
        return grafter.node("Reshape", joined, grafter.whole([-1, len(words)]))
    return grafter.node("Add", grafter.concat(pooled), grafter.constant(bias))


def looked_up(grafter: Grafter, table: Floats, before: int, after: int) -> str:
    """Of each text the weights of its own tokens by a table, float32 (n, vocabulary), without so many special
    tokens `before` and `after` it."""
    count = grafter.node("Unsqueeze", grafter.sum("attention_mask", 1), grafter.whole([1]))
    place = grafter.node("CumSum", "attention_mask", grafter.whole(1))
    behind = grafter.node("Greater", place, grafter.whole(before))
    ahead = grafter.node("LessOrEqual", place, grafter.node("Sub", count, grafter.whole(after)))
    real = grafter.node("Cast", "attention_mask", to=TensorProto.BOOL)
    own = grafter.node("And", grafter.node("And", behind, ahead), real)
    where = grafter.node("NonZero", own)
    rows = grafter.node("Gather", where, grafter.whole([0]), axis=0)
    ids = grafter.node("GatherND", "input_ids", grafter.node("Transpose", where))
    at = grafter.node("Concat", rows, grafter.node("Unsqueeze", ids, grafter.whole([0])), axis=0)
    texts = grafter.node("Gather", grafter.node("Shape", "input_ids"), grafter.whole([0]))
    shape = grafter.node("Concat", texts, grafter.whole([len(table)]), axis=0)
    none = grafter.node("Expand", grafter.constant(np.float32(0)), shape)
    weights = grafter.node("Gather", grafter.constant(table), ids)
    return grafter.node("ScatterND", none, grafter.node("Transpose", at), weights)


def entries(grafter: Grafter, pooled: str, name: str, settings: SparseSettings) -> None:
    """The CSR tensors NAME.indices, NAME.values and NAME.offsets of pooled scores, (n, vocabulary)."""
    places = ""
    if settings.top_k is not None:
        # The k largest, then by their place.
        k = grafter.whole([settings.top_k])
        places = grafter.node("TopK", pooled, k, result=1, results=2, axis=1, largest=1, sorted=0)
        places = grafter.node("TopK", places, k, results=2, axis=1, largest=0, sorted=1)
        pooled = grafter.node("GatherElements", pooled, places, axis=1)
    there = grafter.node("Greater", pooled, grafter.constant(np.float32(0)))
    where = grafter.node("NonZero", there)
    pairs = grafter.node("Transpose", where)
    values = grafter.node("GatherND", pooled, pairs)
    if settings.pooling == "max":
        for _ in range(settings.activation.count("log1p")):
            values = _log1p(grafter, values)
    grafter.node("Identity", values, output=f"{name}.values")
    columns = (
        grafter.node("GatherND", places, pairs)
        if places
        else grafter.node("Gather", where, grafter.whole(1), axis=0)
    )
    grafter.node("Cast", columns, output=f"{name}.indices", to=TensorProto.INT32)
    counts = grafter.sum(grafter.node("Cast", there, to=TensorProto.INT64), 1)
    ends = grafter.node("CumSum", counts, grafter.whole(0))
    grafter.node("Concat", grafter.whole([0]), ends, output=f"{name}.offsets", axis=0)


def _transformed(grafter: Grafter, states: str, head: LanguageHead) -> str:
    product = grafter.node("MatMul", states, grafter.constant(head.weight))
    given = grafter.node("Add", product, grafter.constant(head.bias))
    if head.gate == "relu":
        gated = grafter.node("Relu", given)
    else:
        divided = grafter.node("Div", given, grafter.constant(np.float32(2**0.5)))
        risen = grafter.node("Add", grafter.node("Erf", divided), grafter.constant(np.float32(1)))
        half = grafter.node("Mul", given, grafter.constant(np.float32(0.5)))
        gated = grafter.node("Mul", half, risen)
    return grafter.layer_norm(gated, head.scale, head.shift, head.epsilon)


def _without_padding(grafter: Grafter, hidden: str) -> str:
    """The states with a text's first one in place of its padding, which so never has the largest score."""
    mask = grafter.node("Cast", "attention_mask", to=TensorProto.BOOL)
    first = grafter.node("Gather", hidden, grafter.whole([0]), axis=1)
    return grafter.node("Where", grafter.unsqueezed(mask, 2), hidden, first)


def _log1p(grafter: Grafter, values: str) -> str:
    """log(1 + x) of x above 0, exact for small x as well (Goldberg 1991, theorem 4): log(u) x / (u - 1), with
    u = 1 + x as it was rounded."""
    one = grafter.constant(np.float32(1))
    u = grafter.node("Add", values, one)
    ratio = grafter.node("Div", values, grafter.node("Sub", u, one))
    product = grafter.node("Mul", grafter.node("Log", u), ratio)
    return grafter.node("Where", grafter.node("Equal", u, one), values, product)
