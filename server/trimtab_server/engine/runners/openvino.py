"""A graph in OpenVINO, on a CPU.

OpenVINO multiplies in bfloat16 on processors that have such products, which ONNX Runtime does not do on CPUs.
A run cannot be stopped. So graphs with loops, which may have no end, are refused.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from typing import Any

from trimtab.artifacts import openvino
from trimtab.artifacts.reading import UnreadableError
from trimtab.values.column import Columns
from trimtab_server.engine.batch import Model, Wanted
from trimtab_server.engine.runners import loading, signature
from trimtab_server.engine.runners.embedded import embedded
from trimtab_server.engine.runners.runner import GraphError, UnusableError
from trimtab_server.engine.runners.signature import Declared

PACKAGE = "openvino"
MOST_FAILED = 3  # runs of a graph, until it is loaded again
# ONNX Runtime's names of OpenVINO's types, where they differ.
NAMES = {"f32": "float", "f64": "double", "f16": "float16", "bf16": "bfloat16", "boolean": "bool",
         "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "u8": "uint8"}  # fmt: skip
REFUSED = dict.fromkeys(openvino.LOOPS, "which OpenVINO cannot be stopped in if it has no end")


class OpenVinoRunner:
    """A graph compiled for each of so many `workers`, which runs on the worker's own thread.

    Raises GraphError if it is not what its manifest says, or has operators that OpenVINO is not given;
    UnusableError on another device than a CPU, and if OpenVINO is not installed.
    """

    def __init__(self, model: Model, kind: str, index: int = 0, workers: int = 1) -> None:
        if kind != "cpu":
            raise UnusableError(
                f"variant {model.variant} of {model.encoder} version {model.version} runs in OpenVINO, on "
                f"CPUs alone, and not on device {kind}:{index}: leave it out of `variants` in "
                f"[encoders.{model.encoder}], or choose device 'cpu'"
            )
        self.model = model
        core = _core(model)
        try:
            graph, data = loading.contents(model)
        except UnreadableError as error:
            raise GraphError(f"{error}. Copy the bundle again, or export it again") from None
        whole = embedded(graph, data, REFUSED)
        del graph, data
        network, how = core.read_model(whole), openvino.settings(core, model.precision)
        del whole

        def compiled(number: int) -> Any:
            return core.compile_model(network, "CPU", how)

        # A compiled graph has one run at a time, so each worker needs its own; all are compiled at once.
        with ThreadPoolExecutor(workers) as pool:
            graphs = list(pool.map(compiled, range(workers)))
        self._failed = 0
        self._idle = [each.create_infer_request() for each in graphs]
        self._more = partial(compiled, workers)
        self._ports = graphs[0].outputs
        self._places = {name: place for place, port in enumerate(self._ports) for name in port.get_names()}
        signature.check(
            model,
            {port.node.friendly_name: _declared(port) for port in graphs[0].inputs},
            {name: _declared(self._ports[place]) for name, place in self._places.items()},
        )

    def run(self, batch: Columns, wanted: Wanted) -> Columns:
        """What is wanted of the items of a batch."""
        feeds = self.model.input.feeds(batch)
        tensors = signature.tensors(self.model, wanted)
        with self._request() as request:
            given = openvino.run(request, self._ports, feeds, [self._places[name] for name in tensors])
            found = dict(zip(tensors, given, strict=True))
            return signature.columns(self.model, wanted, found, len(next(iter(batch.values()))))

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """A request of a compiled graph that nobody else uses. Neither is used again once it has failed.

        Raises RuntimeError after too many failures, since what has failed cannot be freed.
        """
        if self._failed >= MOST_FAILED:
            raise RuntimeError(f"the graph has failed {self._failed} times in OpenVINO, and was given up")
        try:
            request = self._idle.pop()
        except IndexError:  # another one has failed, or hangs
            request = self._more().create_infer_request()
        try:
            yield request
        except BaseException:
            self._failed += 1
            openvino.abandon(request)  # an operator may have failed behind the outputs that were given
            raise
        self._idle.append(request)


def version() -> str:
    """OpenVINO's version; "" if it is not installed."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return ""


def _core(model: Model) -> Any:
    """OpenVINO. UnusableError if it is not installed."""
    try:
        return openvino.core()
    except ModuleNotFoundError:
        raise UnusableError(
            f"variant {model.variant} of {model.encoder} version {model.version} runs in OpenVINO, which is "
            "not installed: pip install 'trimtab[openvino]'"
        ) from None


def _declared(port: Any) -> Declared:
    name, shape = port.element_type.get_type_name(), port.partial_shape
    axes = [] if shape.rank.is_dynamic else shape
    return Declared(
        f"tensor({NAMES.get(name, name)})", [None if each.is_dynamic else each.get_length() for each in axes]
    )
