"""ONNX Runtime, imported only here; on the CPU unless told otherwise."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ExportError

# ONNX Runtime sends telemetry unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

FATAL = 4  # ONNX Runtime's log severity; errors are raised, too


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


def providers() -> list[str]:
    """The devices that this ONNX Runtime was built for."""
    require()
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def session(graph: Path, threads: int = 0, providers: Sequence[Any] = ("CPUExecutionProvider",)) -> Any:
    """An InferenceSession of the graph; `threads` within an operator, 0: one per core."""
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


def run(running: Any, output: str, tokens: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
    """One output for a padded batch; `tokens` may hold inputs that the graph does not have."""
    names = {value.name for value in running.get_inputs()}
    try:
        (result,) = running.run([output], {name: ids for name, ids in tokens.items() if name in names})
    except Exception as error:
        batch, length = tokens["input_ids"].shape
        raise ExportError(
            f"the graph fails on {batch} texts of {length} tokens: {first_line(error)}. "
            "If the length is the reason, give a smaller --max-tokens"
        ) from error
    vectors: NDArray[np.float32] = result
    return vectors


def first_line(error: BaseException) -> str:
    """A library's exception on one line, without its stack."""
    first, *rest = (str(error).strip() or type(error).__name__).splitlines()
    if first.endswith(":") and rest:  # a heading alone says nothing
        first = f"{first} {rest[0].strip()}"
    return first.rstrip(".")
