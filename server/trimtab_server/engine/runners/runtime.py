"""One run in ONNX Runtime, which another thread can stop: nothing else ends a graph that loops."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import onnxruntime as ort

from trimtab_server.stopping import stoppable

MOST_TOLD = 500


def run(session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
    """As session.run does. Raises ONNX Runtime's error when this thread is stopped meanwhile."""
    options = ort.RunOptions()
    with stoppable(partial(setattr, options, "terminate", True)):
        results: list[Any] = session.run(outputs, feeds, options)
    return results


def told(error: BaseException) -> str:
    """An error's message in one line of limited length: libraries write several."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= MOST_TOLD else f"{line[:MOST_TOLD]}..."


def options() -> ort.SessionOptions:
    """For sessions that run on one thread each: parallelism comes from several workers, which do not collapse
    beside a busy neighbour as several threads of one run do."""
    made = ort.SessionOptions()
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    made.log_severity_level = 4  # what it raises is logged by us, once
    return made
