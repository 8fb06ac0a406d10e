"""What a graph declares, compared with what its manifest says of it; and a run's tensors as columns."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.values.column import Column, Columns
from trimtab_server.engine.batch import Model, OutputSpec, Wanted
from trimtab_server.engine.runners.runner import GraphError, checked

# ONNX Runtime's names of what an output's numbers may be.
TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)"}


class Declared(NamedTuple):
    """A graph's input or output: its type, as ONNX Runtime calls it, and its shape; sizes that vary are no
    numbers, and an unknown shape is empty."""

    type: str
    shape: Sequence[Any]


def check(model: Model, inputs: Mapping[str, Declared], outputs: Mapping[str, Declared]) -> None:
    """Refuse a graph that declares other inputs or outputs than its manifest; its runs are checked, too.

    Raises GraphError.
    """
    given = {name: (each.type, len(each.shape)) for name, each in inputs.items()}
    wanted = model.input.signature
    if given != wanted:
        raise GraphError(
            f"the graph takes {_described(given)}, and its manifest says {_described(wanted)}: "
            "export it again"
        )
    for spec in model.outputs:
        _check_output(outputs, spec.tensor, spec.dtype, width(model, spec.tensor) if spec.width else 0)
        if spec.several:
            _check_output(outputs, spec.offsets, "int64", 0)


def tensors(model: Model, wanted: Wanted) -> list[str]:
    """The tensors that a graph must give for these outputs, each once."""
    return list(dict.fromkeys(name for spec in model.specs(wanted) for name in spec.tensors))


def columns(model: Model, wanted: Wanted, found: Mapping[str, object], items: int) -> Columns:
    """The wanted outputs of a run on so many items, cut out of the tensors that it gave. GraphError if they
    are not what the model says."""
    result = {
        spec.name: Column(
            _cut(found[spec.tensor], spec, width(model, spec.tensor)),
            _array(found[spec.offsets]) if spec.several else None,
        )
        for spec in model.specs(wanted)
    }
    return checked(result, model, wanted, items)


def width(model: Model, tensor: str) -> int:
    """How wide the rows of a tensor must be."""
    return max(spec.start + spec.width for spec in model.outputs if spec.tensor == tensor)


def _array(tensor: object) -> NDArray[Any]:
    if not isinstance(tensor, np.ndarray):
        what = "nothing" if tensor is None else f"a {type(tensor).__name__}"
        raise GraphError(f"the graph gave {what} instead of a tensor")
    return tensor


def _cut(given: object, spec: OutputSpec, wide: int) -> NDArray[Any]:
    """An output's part of a tensor."""
    tensor = _array(given)
    if spec.width in (0, wide):
        return tensor
    if tensor.ndim != 2 or tensor.shape[1] != wide:
        raise GraphError(
            f"the graph gave {tensor.dtype} {tensor.shape} instead of rows of {wide} as {spec.tensor}"
        )
    return tensor[:, spec.start : spec.start + spec.width]


def _check_output(outputs: Mapping[str, Declared], tensor: str, dtype: str, wide: int) -> None:
    """Refuse a tensor that is not declared as rows of `wide` (0: single numbers) of this dtype."""
    if tensor not in outputs:
        raise GraphError(f"the graph has no output {tensor!r}, but {', '.join(outputs)}: export it again")
    kind, shape = outputs[tensor]
    if kind != TYPES[dtype]:
        raise GraphError(f"the output {tensor!r} of the graph is {kind}, not {TYPES[dtype]}: export it again")
    there = shape[-1] if shape else None
    if len(shape) not in (0, 2 if wide else 1) or (wide and isinstance(there, int) and there != wide):
        raise GraphError(
            f"the output {tensor!r} of the graph is of shape {list(shape)}, and its manifest says {wide} "
            "dimensions: export it again"
        )


def _described(inputs: Mapping[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} {kind} of rank {rank}" for name, (kind, rank) in sorted(inputs.items()))
