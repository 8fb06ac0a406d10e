"""Infinity's own command, with ONNX Runtime on one thread.

By default ONNX Runtime starts a pinned thread on each core of the machine, so it would escape the one core
that every server gets here; Infinity has no option against that. Runs in Infinity's venv, with Infinity's
arguments.
"""

from typing import Any

import onnxruntime as ort


class OneThread(ort.InferenceSession):  # type: ignore[misc]
    """A session as Infinity opens it, except for the number of threads."""

    def __init__(self, path: Any, sess_options: Any = None, *arguments: Any, **options: Any) -> None:
        sess_options = sess_options or ort.SessionOptions()
        sess_options.intra_op_num_threads = sess_options.inter_op_num_threads = 1
        super().__init__(path, sess_options, *arguments, **options)


ort.InferenceSession = OneThread

if __name__ == "__main__":
    from infinity_emb.cli import cli  # type: ignore[import-not-found]

    cli()
