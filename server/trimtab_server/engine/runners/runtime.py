"""One run in ONNX Runtime, which another thread can stop: of a graph that loops, nothing else would.

ONNX Runtime looks at the flag between two nodes and between two turns of a Loop. What hangs within a node, as
in a driver, goes on.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime as ort

MOST_TOLD = 500

_running: dict[int, ort.RunOptions] = {}  # by thread


def run(session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
    """As session.run does. Raises ONNX Runtime's error when `stop` is called for this thread meanwhile."""
    options, thread = ort.RunOptions(), threading.get_ident()
    _running[thread] = options
    try:
        results: list[Any] = session.run(outputs, feeds, options)
    finally:
        del _running[thread]
    return results


def stop(thread: int | None) -> None:
    """Have the run of this thread raise, if there is one."""
    options = _running.get(thread or 0)
    if options is not None:
        options.terminate = True


def told(error: BaseException) -> str:
    """What an error says, in one line that is not endless: libraries write several."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= MOST_TOLD else f"{line[:MOST_TOLD]}..."


def options() -> ort.SessionOptions:
    """For sessions that run on one thread each: parallelism comes from several workers, which do not collapse
    beside a busy neighbour as several threads of one run do."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    made.log_severity_level = 4  # what it raises is logged by us, once
    return made
