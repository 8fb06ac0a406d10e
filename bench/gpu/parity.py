"""How near the device's vectors are to float32 on the CPU, and whether a text's neighbours matter."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.gpu.devices import CPU, Row, proved
from bench.gpu.graphs import GRAPHS
from bench.gpu.run import Run
from bench.gpu.sessions import Opened, Vectors, cosines, tried

TEXTS, TINY = 512, 24
BATCH = 32
# By default, CUDA's float32 products round their factors to TF32, which has float16's ten bits.
EXACT = {"use_tf32": "0"}


def parity(run: Run) -> Iterator[Row]:
    """A row for each graph; on a GPU, float32 also without TF32."""
    ids = run.encoder.ids(data.mix("mixed", TINY if run.tiny else TEXTS))
    # One text at a time: the CPU's vectors must not depend on anything that is judged here.
    expected = Opened(run.graphs.path("fp32"), CPU).vectors(run.encoder, ids, 1)
    for name in GRAPHS:
        ways: list[tuple[str, Mapping[str, str]]] = [(name, {})]
        if run.on_gpu and name.startswith("fp32"):
            ways.append((f"{name}, no TF32", EXACT))
        for row, options in ways:
            yield tried({"row": row}, partial(compare, run, name, options, ids, expected))


def compare(
    run: Run, name: str, options: Mapping[str, str], ids: Sequence[NDArray[np.int32]], expected: Vectors
) -> Row:
    """A graph's vectors in batches against those expected, and against its own, one text at a time."""
    opened = Opened(run.graphs.path(name), run.device, options)
    together = opened.vectors(run.encoder, ids, BATCH)
    alone = opened.vectors(run.encoder, ids[: len(ids) // 4], 1)
    near = cosines(together, expected)
    beside = cosines(together[: len(alone)], alone)
    return {
        "texts": len(ids),
        "cosine_min": float(near.min()),
        "cosine_mean": float(near.mean()),
        "difference": float(np.abs(together - expected).max()),
        "batch_cosine_min": float(beside.min()),
        "batch_difference": float(np.abs(together[: len(alone)] - alone).max()),
        "on": proved(opened.session, run.device),
    }
