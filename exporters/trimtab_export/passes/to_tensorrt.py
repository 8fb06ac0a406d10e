"""Builds TensorRT engines for this machine's GPU ahead of time, since that takes minutes.

ONNX Runtime's TensorrtExecutionProvider builds them, for the profiles that the server asks for (see
`trimtab.artifacts.tensorrt`); they are stored next to the graph. On another kind of GPU, or with another
version of TensorRT, they are ignored, and the server builds its own when it starts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trimtab.artifacts import tensorrt
from trimtab.errors import ExportError
from trimtab.kinds import Precision
from trimtab_export import runtime
from trimtab_export.graph.head import OUTPUT

PROVIDER = "TensorrtExecutionProvider"


def check(precision: Precision) -> None:
    """ExportError, with the reason, if there can be no engine for this precision or on this machine."""
    if precision not in tensorrt.PRECISIONS:
        raise ExportError(
            f"TensorRT does not know the operators of {precision}; it reads {', '.join(tensorrt.PRECISIONS)}"
        )
    if PROVIDER not in runtime.providers():
        raise ExportError(
            "ONNX Runtime has no TensorRT here: pip uninstall onnxruntime, pip install 'trimtab[trt]' on "
            "a machine with an NVIDIA GPU"
        )


def build(graph: Path, inputs: Sequence[str], max_tokens: int, precision: Precision) -> tuple[Path, ...]:
    """Build a graph's engines into the folder `tensorrt` next to it. Returns the files.

    Each profile is run once, since the provider builds when it first sees a shape. Raises ExportError where
    there is no TensorRT, or it cannot be loaded.
    """
    check(precision)
    folder = graph.with_name(tensorrt.FOLDER)
    folder.mkdir(exist_ok=True)
    settings = tensorrt.options(inputs, max_tokens, precision, folder)
    session = runtime.session(graph, providers=[(PROVIDER, settings), "CUDAExecutionProvider"])
    if session.get_providers()[0] != PROVIDER:  # it falls back without an exception
        raise ExportError(
            "TensorRT could not be loaded: check the driver, CUDA and TensorRT's libraries on this machine"
        )
    for profile in tensorrt.profiles(max_tokens):
        runtime.run(session, OUTPUT, {name: np.ones(profile.typical, np.int64) for name in inputs})
    files = tuple(sorted(path for path in folder.iterdir() if path.is_file()))
    if not any(path.suffix == ".engine" for path in files):
        raise ExportError("TensorRT took no part of the graph: the bundle would be served by CUDA alone")
    return files
