"""How graphs run in OpenVINO, for the exporter, which measures them, and the server, which serves them.

What is served is what was measured only if both compile with the same settings, so both take them from here.
"""

import ctypes
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from numpy.typing import NDArray

from trimtab.kinds import Precision

TELEMETRY = "openvino_telemetry"
# OpenVINO knows some operators of ONNX Runtime's own, and fails on those of our int8 graphs.
DOMAINS = ("", "ai.onnx")
# It cannot be stopped in a loop, which may have no end.
LOOPS = ("Loop", "Scan")


@cache
def core() -> Any:
    """OpenVINO, which compiles graphs. ModuleNotFoundError if it is not installed."""
    # When it is imported, OpenVINO reports that over the network with this package, if it can.
    there = TELEMETRY in sys.modules
    if not there:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if not there:
            del sys.modules[TELEMETRY]
    return openvino.Core()


def multiplies_bf16(opened: Any) -> bool:
    """Whether the processor has products in bfloat16."""
    return "BF16" in opened.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def settings(opened: Any, precision: Precision, threads: int = 1) -> dict[str, Any]:
    """How a graph of this precision is compiled. With one thread, it runs on that of the caller; 0: one per
    core."""
    return {
        # With several streams, OpenVINO would run on threads of its own, on cores of its own choice.
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        # Where the processor has no such products, they would be emulated, and slow.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" and multiplies_bf16(opened) else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # products are as precise as the bundle says
    }


def run(
    request: Any, ports: Sequence[Any], feeds: Mapping[str, NDArray[Any]], places: Sequence[int]
) -> list[NDArray[Any]]:
    """The outputs at these places of a compiled graph's `ports`, of one run.

    Raises RuntimeError if an operator failed. Then neither the request nor its compiled graph may be used
    again: OpenVINO does not raise such errors, and its outputs would stay those of the last good run.
    """
    import openvino

    # Empty tensors, which a run replaces: what is left of them was not computed.
    for place, port in enumerate(ports):
        rank = port.partial_shape.rank
        empty = openvino.Shape([0] * (1 if rank.is_dynamic else rank.get_length()))
        request.set_output_tensor(place, openvino.Tensor(port.element_type, empty))
    request.infer(feeds, share_inputs=True, share_outputs=True)
    if not any(request.get_output_tensor(place).size for place in range(len(ports))):
        abandon(request)
        raise RuntimeError("OpenVINO computed nothing: an operator failed, and it does not say which")
    return [request.get_output_tensor(place).data.copy() for place in places]


def abandon(request: Any) -> None:
    """Never free a request whose run has failed, nor its compiled graph: that would crash the process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(request))
