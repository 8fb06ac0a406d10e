"""Running a graph: the Session protocol, and ONNX Runtime behind it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from trimtab.artifacts.reading import UnreadableError
from trimtab.inputs import feeds
from trimtab_server.engine.batch import Ids, Model
from trimtab_server.engine.runners import loading, runtime

OUTPUT = "embeddings"
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}


class UnusableError(Exception):
    """The device that a configuration names cannot be used; the message says why, and what to do."""


class GraphError(Exception):
    """A graph that is not what its manifest says; the message says how, and what to do."""


class NotReopenedError(Exception):
    """A graph that was loaded cannot be opened again, in a process that began anew; the message says why."""


class DeviceLostError(Exception):
    """The process that ran the sessions of a device is gone, and with it what it was doing."""


class Session(Protocol):
    """A loaded graph. `run` may be called from several threads at once."""

    def run(self, ids: Sequence[Ids]) -> NDArray[np.float32]:
        """Texts as token ids in, their vectors out: float32 (n, dimensions), row i for ids[i]."""


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


class OrtSession:
    """An ONNX Runtime session on one device."""

    def __init__(self, model: Model, kind: str, index: int = 0) -> None:
        self.model = model
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

    def run(self, ids: Sequence[Ids]) -> NDArray[np.float32]:
        made = feeds(ids, self.model.pad_id, self.model.types, self.model.inputs)
        return checked(runtime.run(self._session, [OUTPUT], made)[0], (len(ids), self.model.dimensions))


def checked(result: object, shape: tuple[int, int]) -> NDArray[np.float32]:
    """What a graph gave, where it is float32 of this shape; GraphError, which names both, where it is not."""
    if not isinstance(result, np.ndarray):
        raise GraphError(f"the graph gave {_kind(result)} instead of a tensor")
    if result.dtype != np.float32 or result.shape != shape:
        raise GraphError(f"the graph gave {result.dtype} {result.shape} instead of float32 {shape}")
    return result


def _kind(result: object) -> str:
    return "nothing" if result is None else f"a {type(result).__name__}"


def _check_signature(model: Model, session: ort.InferenceSession) -> None:
    """Refuse a graph that declares other inputs or outputs than its manifest; its runs are checked, too."""
    given = {each.name: (each.type, len(each.shape)) for each in session.get_inputs()}
    wanted = dict.fromkeys(model.inputs, ("tensor(int64)", 2))
    if given != wanted:
        raise GraphError(
            f"the graph takes {_described(given)}, and its manifest says {_described(wanted)}: "
            "export it again"
        )
    outputs = {each.name: each for each in session.get_outputs()}
    if OUTPUT not in outputs:
        raise GraphError(f"the graph has no output {OUTPUT!r}, but {', '.join(outputs)}: export it again")
    kind, shape = outputs[OUTPUT].type, outputs[OUTPUT].shape
    if kind != "tensor(float)":
        raise GraphError(f"the output {OUTPUT!r} of the graph is {kind}, not tensor(float): export it again")
    width = shape[-1] if shape else None
    if len(shape) not in (0, 2) or (isinstance(width, int) and width != model.dimensions):
        raise GraphError(
            f"the output {OUTPUT!r} of the graph is of shape {shape}, and its manifest says "
            f"{model.dimensions} dimensions: export it again"
        )


def _described(inputs: Mapping[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} {kind} of rank {rank}" for name, (kind, rank) in sorted(inputs.items()))
