"""A graph in ONNX Runtime."""

from collections.abc import Sequence

import onnxruntime as ort

from trimtab.artifacts.reading import UnreadableError
from trimtab.values.column import Columns
from trimtab_server.engine.batch import Model, Wanted
from trimtab_server.engine.runners import loading, runtime, signature
from trimtab_server.engine.runners.runner import GraphError, UnusableError
from trimtab_server.engine.runners.signature import Declared

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}


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
        # Nor may a run that fails there move the session to the CPU, which ONNX Runtime does by default.
        self._session.disable_fallback()
        signature.check(
            model,
            {each.name: Declared(each.type, each.shape) for each in self._session.get_inputs()},
            {each.name: Declared(each.type, each.shape) for each in self._session.get_outputs()},
        )

    def run(self, batch: Columns, wanted: Wanted) -> Columns:
        """What is wanted of the items of a batch."""
        tensors = signature.tensors(self.model, wanted)
        given = runtime.run(self._session, tensors, self.model.input.feeds(batch))
        items = len(next(iter(batch.values())))
        return signature.columns(self.model, wanted, dict(zip(tensors, given, strict=True)), items)
