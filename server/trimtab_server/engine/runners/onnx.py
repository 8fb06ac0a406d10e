"""A graph in ONNX Runtime."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from trimtab.artifacts.reading import UnreadableError
from trimtab.values.column import Column, Columns
from trimtab_server.engine.batch import Model, OutputSpec, Wanted
from trimtab_server.engine.runners import loading, runtime
from trimtab_server.engine.runners.runner import GraphError, UnusableError, checked

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
# ONNX Runtime's names of what an output's numbers may be.
TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)"}


def providers(kind: str, index: int) -> Sequence[str]:
    """The execution providers of a kind of device; UnusableError where this build lacks one of them."""
    wanted = PROVIDERS[kind]
    missing = [name for name in wanted if name not in ort.get_available_providers()]
    if missing:
        raise UnusableError(
            f"device {kind}:{index} needs ONNX Runtime's {missing[0]}, which this build does not have: "
            "pip uninstall onnxruntime, then pip install 'trimtab[gpu]'"
        )
    return wanted


class OnnxRunner:
    """An ONNX Runtime session on one device. GraphError if the graph is not what its manifest says."""

    def __init__(self, model: Model, kind: str, index: int = 0) -> None:
        self.model = model
        self._specs = {spec.name: spec for spec in model.outputs}
        self._widths = {spec.tensor: _width(model, spec.tensor) for spec in model.outputs}
        options = runtime.options()
        # Batches differ in shape from run to run, so there is no memory pattern to reuse.
        options.enable_mem_pattern = False
        wanted = providers(kind, index)
        try:
            self._session = loading.open_session(model, options, wanted, index)
        except UnreadableError as error:
            raise GraphError(f"{error}. Copy the bundle again, or export it again") from None
        # A provider that cannot load falls back to the CPU without an exception.
        if self._session.get_providers()[0] != wanted[0]:
            raise UnusableError(
                f"device {kind}:{index}: ONNX Runtime could not load {wanted[0]} and fell back to "
                f"{self._session.get_providers()[0]}. Check the driver, CUDA and cuDNN, or choose "
                "device 'cpu'"
            )
        _check_signature(model, self._session)

    def run(self, batch: Columns, wanted: Wanted) -> Columns:
        """What is wanted of the items of a batch."""
        specs = [self._specs[name] for name in wanted]
        tensors = list(dict.fromkeys(name for spec in specs for name in spec.tensors))
        given = runtime.run(self._session, tensors, self.model.input.feeds(batch))
        found = dict(zip(tensors, given, strict=True))
        items = len(next(iter(batch.values())))
        result = {
            spec.name: Column(
                _cut(found[spec.tensor], spec, self._widths[spec.tensor]),
                _array(found[spec.offsets]) if spec.several else None,
            )
            for spec in specs
        }
        return checked(result, self.model, wanted, items)


def _width(model: Model, tensor: str) -> int:
    """How wide the rows of a tensor must be."""
    return max(spec.start + spec.width for spec in model.outputs if spec.tensor == tensor)


def _array(tensor: object) -> NDArray[Any]:
    if not isinstance(tensor, np.ndarray):
        what = "nothing" if tensor is None else f"a {type(tensor).__name__}"
        raise GraphError(f"the graph gave {what} instead of a tensor")
    return tensor


def _cut(given: object, spec: OutputSpec, width: int) -> NDArray[Any]:
    """An output's part of a tensor."""
    tensor = _array(given)
    if spec.width in (0, width):
        return tensor
    if tensor.ndim != 2 or tensor.shape[1] != width:
        raise GraphError(
            f"the graph gave {tensor.dtype} {tensor.shape} instead of rows of {width} as {spec.tensor}"
        )
    return tensor[:, spec.start : spec.start + spec.width]


def _check_signature(model: Model, session: ort.InferenceSession) -> None:
    """Refuse a graph that declares other inputs or outputs than its manifest; its runs are checked, too."""
    given = {each.name: (each.type, len(each.shape)) for each in session.get_inputs()}
    wanted = model.input.signature
    if given != wanted:
        raise GraphError(
            f"the graph takes {_described(given)}, and its manifest says {_described(wanted)}: "
            "export it again"
        )
    outputs = {each.name: each for each in session.get_outputs()}
    for spec in model.outputs:
        _check_output(outputs, spec.tensor, spec.dtype, _width(model, spec.tensor) if spec.width else 0)
        if spec.several:
            _check_output(outputs, spec.offsets, "int64", 0)


def _check_output(outputs: Mapping[str, Any], tensor: str, dtype: str, width: int) -> None:
    """Refuse a tensor that is not declared as rows of `width` (0: single numbers) of this dtype."""
    if tensor not in outputs:
        raise GraphError(f"the graph has no output {tensor!r}, but {', '.join(outputs)}: export it again")
    kind, shape = outputs[tensor].type, outputs[tensor].shape
    if kind != TYPES[dtype]:
        raise GraphError(f"the output {tensor!r} of the graph is {kind}, not {TYPES[dtype]}: export it again")
    there = shape[-1] if shape else None
    if len(shape) not in (0, 2 if width else 1) or (width and isinstance(there, int) and there != width):
        raise GraphError(
            f"the output {tensor!r} of the graph is of shape {shape}, and its manifest says {width} "
            "dimensions: export it again"
        )


def _described(inputs: Mapping[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} {kind} of rank {rank}" for name, (kind, rank) in sorted(inputs.items()))
