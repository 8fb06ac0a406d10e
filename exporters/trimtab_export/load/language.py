"""The head of a masked language model of transformers, as plain data."""

from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ExportError
from trimtab_export.graph.lexical import Gate, LanguageHead


class _Layout(NamedTuple):
    """Where a class keeps its head. gate: the module of its activation; "": always gelu."""

    dense: str
    gate: str
    norm: str
    decoder: str


_ROBERTA = _Layout("lm_head.dense", "", "lm_head.layer_norm", "lm_head.decoder")
_TRANSFORM = "cls.predictions.transform"
LAYOUTS = {
    "BertForMaskedLM": _Layout(
        f"{_TRANSFORM}.dense",
        f"{_TRANSFORM}.transform_act_fn",
        f"{_TRANSFORM}.LayerNorm",
        "cls.predictions.decoder",
    ),
    "CamembertForMaskedLM": _ROBERTA,
    "DistilBertForMaskedLM": _Layout("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    "MPNetForMaskedLM": _ROBERTA,
    "RobertaForMaskedLM": _ROBERTA,
    "XLMRobertaForMaskedLM": _ROBERTA,
}
# transformers' classes of activations.
GATES: dict[str, Gate] = {"GELUActivation": "gelu", "ReLU": "relu"}


def head(source: str, model: Any) -> LanguageHead:
    """The head of a model. ExportError if its class, or its activation, is not known."""
    name = type(model).__name__
    layout = LAYOUTS.get(name)
    if layout is None:
        raise ExportError(
            f"{source} is a {name}, whose language head cannot be exported; these can: {', '.join(LAYOUTS)}"
        )
    gate = type(_module(model, layout.gate)).__name__ if layout.gate else "GELUActivation"
    if gate not in GATES:
        raise ExportError(
            f"the language head of {source} has the activation {gate}; these can be exported: "
            f"{', '.join(GATES)}"
        )
    dense, norm, decoder = (_module(model, each) for each in (layout.dense, layout.norm, layout.decoder))
    return LanguageHead(
        weight=_array(dense.weight.T),
        bias=_array(dense.bias),
        gate=GATES[gate],
        scale=_array(norm.weight),
        shift=_array(norm.bias),
        epsilon=float(norm.eps),
        words=_array(decoder.weight),
        word_bias=_array(decoder.bias),
    )


def _module(model: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), model)


def _array(parameter: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.ascontiguousarray(parameter.detach().float().numpy())
    return values
