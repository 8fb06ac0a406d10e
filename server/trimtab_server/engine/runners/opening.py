"""Opens a graph in the runtime that its manifest names."""

import onnxruntime as ort

from trimtab_server.engine.batch import Model
from trimtab_server.engine.runners import openvino
from trimtab_server.engine.runners.onnx import OnnxRunner
from trimtab_server.engine.runners.openvino import OpenVinoRunner
from trimtab_server.engine.runners.runner import Runner


def open_graph(model: Model, kind: str, index: int, workers: int) -> Runner:
    """A graph on a device, for so many workers. GraphError if it is not what its manifest says; UnusableError
    if the device cannot be used."""
    match model.runner:
        case "onnx":
            return OnnxRunner(model, kind, index)
        case "openvino":
            return OpenVinoRunner(model, kind, index, workers)


def version(model: Model) -> str:
    """The runtime that runs a graph, with its version: what it costs depends on that."""
    return ort.__version__ if model.runner == "onnx" else f"{model.runner} {openvino.version()}"
