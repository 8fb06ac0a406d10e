"""Graphs that are not what their manifest says are refused by name, and runs bring nothing but vectors."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state

from tests import hostile
from tests.server.models_made import ALONE, batch, model
from trimtab_server import stopping
from trimtab_server.engine.batch import HashedFile
from trimtab_server.engine.runners.onnx import OnnxRunner
from trimtab_server.engine.runners.runner import GraphError

IDS = batch(np.array([2, 5, 6, 3], np.int32), np.array([2, 7, 3], np.int32))


def session(
    folder: Path, graph: bytes, *, dimensions: int = hostile.DIMENSIONS, **changes: Any
) -> OnnxRunner:
    path = folder / "model.onnx"
    path.write_bytes(graph)
    files = (HashedFile(path.name, len(graph), hashlib.sha256(graph).hexdigest()),)
    return OnnxRunner(model(folder=folder, files=files, dimensions=dimensions, most=64, **changes), "cpu")


WRONG = {
    "sequence": (hostile.sequence(), {}, r"seq\(tensor\(float\)\)"),
    "optional": (hostile.optional(), {}, r"optional\(tensor\(float\)\)"),
    "string": (hostile.of_type(hostile.TensorProto.STRING), {}, r"tensor\(string\)"),
    "int64": (hostile.of_type(hostile.INT64), {}, r"tensor\(int64\)"),
    "bool": (hostile.of_type(hostile.BOOL), {}, r"tensor\(bool\)"),
    "float16": (hostile.of_type(hostile.TensorProto.FLOAT16), {}, r"tensor\(float16\)"),
    "rank": (hostile.rank_three(), {}, "'n', 1, 16"),
    "width": (hostile.encoder(), {"dimensions": 17}, "says 17 dimensions"),
    "output": (hostile.encoder(name="logits"), {}, "no output 'embeddings', but logits"),
    "inputs": (hostile.encoder(), {"inputs": ("input_ids",)}, "the graph takes attention_mask"),
}


@pytest.mark.parametrize(("graph", "changes", "words"), WRONG.values(), ids=WRONG)
def test_a_graph_is_what_its_manifest_says(tmp_path: Path, graph: bytes, changes: dict, words: str) -> None:
    with pytest.raises(GraphError, match=words):
        session(tmp_path, graph, **changes)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (hostile.one_row_more(), r"\(3, 16\) instead of float32 \(2, 16\)"),
        (hostile.encoder(output=hostile.value("embeddings", hostile.FLOAT, None)), ""),
    ],
)
def test_what_a_run_gives_is_looked_at(tmp_path: Path, graph: bytes, words: str) -> None:
    opened = session(tmp_path, graph)
    if words:
        with pytest.raises(GraphError, match=words):
            opened.run(IDS, ALONE)
    else:  # a graph need not declare the shape that it gives
        expected = hostile.vectors(["w1 w2", "w3"])
        np.testing.assert_allclose(opened.run(IDS, ALONE)["dense"].values, expected, atol=1e-6)


class FailingProvider:
    """ONNX Runtime's session, whose provider fails every run."""

    def __init__(self, session: Any) -> None:
        self.session, self.runs = session, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, *_: object) -> object:
        self.runs += 1
        raise onnxruntime_pybind11_state.EPFail("the device is gone")


def test_a_run_that_fails_on_its_device_never_moves_to_the_cpu(tmp_path: Path) -> None:
    opened = session(tmp_path, hostile.encoder())
    inner: Any = opened._session
    inner._sess = failing = FailingProvider(inner._sess)
    with pytest.raises(onnxruntime_pybind11_state.EPFail, match="the device is gone"):
        opened.run(IDS, ALONE)
    assert failing.runs == 1 and inner._sess is failing, "the session was opened again"


def test_a_loop_without_end_can_be_stopped(tmp_path: Path) -> None:
    opened = session(tmp_path, hostile.looping())
    raised: list[Exception] = []

    def run() -> None:
        try:
            opened.run(IDS, ALONE)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        stopping.stop(thread.ident)  # from its first turn on
        thread.join(0.01)
    assert "terminate" in str(raised[0])
    stopping.stop(thread.ident)
