"""ONNX Runtime, imported only here, and OpenVINO; on the CPU unless told otherwise."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import openvino
from trimtab.errors import ExportError
from trimtab.kinds import Precision, Runtime

# ONNX Runtime sends telemetry unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

FATAL = 4  # ONNX Runtime's log severity; errors are raised, too


@dataclass(frozen=True, slots=True)
class OpenVinoGraph:
    """A graph for OpenVINO, on the CPU."""

    path: Path
    precision: Precision


AnyGraph: TypeAlias = Path | OpenVinoGraph  # a path alone is for ONNX Runtime


def graph(path: Path, runner: Runtime, precision: Precision) -> AnyGraph:
    """A graph in the runtime that runs it."""
    return path if runner == "onnx" else OpenVinoGraph(path, precision)


def require() -> str:
    """The version of ONNX Runtime; ExportError if it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ExportError(
            "the export checks its work with ONNX Runtime, which is not installed: "
            "pip install 'trimtab[server]' (or 'trimtab[gpu]' on a machine with an NVIDIA GPU)"
        ) from None
    return str(onnxruntime.__version__)


def require_openvino() -> Any:
    """OpenVINO; ExportError if it is not installed."""
    try:
        return openvino.core()
    except ModuleNotFoundError:
        raise ExportError("OpenVINO is not installed: pip install 'trimtab[openvino]'") from None


def version(of: AnyGraph) -> str:
    """The name and version of the runtime that runs a graph."""
    if isinstance(of, OpenVinoGraph):
        return f"OpenVINO {metadata.version('openvino')}"
    return f"ONNX Runtime {require()}"


def providers() -> list[str]:
    """The devices that this ONNX Runtime was built for."""
    require()
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def session(graph: AnyGraph, threads: int = 0, providers: Sequence[Any] = ("CPUExecutionProvider",)) -> Any:
    """An InferenceSession of the graph, or the like of OpenVINO; `threads` within an operator, 0: one per
    core."""
    if isinstance(graph, OpenVinoGraph):
        return OpenVinoSession(graph, threads)
    require()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = FATAL
    # A busy-waiting thread pool steals time from others, and distorts the measured speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=list(providers))
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot load {graph.name}: {first_line(error)}") from error


class InputName(NamedTuple):
    """A graph's input, of which only the name is known."""

    name: str


class OpenVinoSession:
    """A graph in OpenVINO, with as much of InferenceSession as measuring takes. ExportError if it cannot be
    opened."""

    def __init__(self, graph: OpenVinoGraph, threads: int) -> None:
        core = require_openvino()
        try:
            compiled = core.compile_model(
                core.read_model(str(graph.path)), "CPU", openvino.settings(core, graph.precision, threads)
            )
        except Exception as error:
            raise ExportError(f"OpenVINO cannot load {graph.path.name}: {first_line(error)}") from error
        self._names = [InputName(port.node.friendly_name) for port in compiled.inputs]
        self._ports = compiled.outputs
        self._places = {name: n for n, port in enumerate(self._ports) for name in port.get_names()}
        self._request = compiled.create_infer_request()

    def get_inputs(self) -> list[InputName]:
        """The graph's inputs."""
        return self._names

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """These outputs of a run."""
        return openvino.run(self._request, self._ports, feeds, [self._places[name] for name in outputs])


def run(running: Any, output: str, tokens: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
    """One output for a padded batch; `tokens` may hold inputs that the graph does not have."""
    (vectors,) = run_all(running, [output], tokens)
    return vectors


def run_all(running: Any, outputs: Sequence[str], tokens: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Several outputs for a padded batch; `tokens` may hold inputs that the graph does not have."""
    names = {value.name for value in running.get_inputs()}
    try:
        results: list[NDArray[Any]] = running.run(
            list(outputs), {name: ids for name, ids in tokens.items() if name in names}
        )
    except Exception as error:
        batch, length = tokens["input_ids"].shape
        raise ExportError(
            f"the graph fails on {batch} texts of {length} tokens: {first_line(error)}. "
            "If the length is the reason, give a smaller --max-tokens"
        ) from error
    return results


def first_line(error: BaseException) -> str:
    """A library's exception on one line, without its stack."""
    first, *rest = (str(error).strip() or type(error).__name__).splitlines()
    if first.endswith(":") and rest:  # a heading alone says nothing
        first = f"{first} {rest[0].strip()}"
    return first.rstrip(".")
