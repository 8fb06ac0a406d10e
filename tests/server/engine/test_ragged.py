"""Graphs with several outputs, whose items may have several rows: in each runtime, and rehearsed."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.server import ragged_made
from tests.server.models_made import batch, model
from tests.server.ragged_made import ALL, DENSE, INDICES, TOKENS, VALUES
from trimtab.kinds import Runtime
from trimtab.values.column import Column
from trimtab_server.engine.batch import HashedFile, Model, OutputSpec
from trimtab_server.engine.runners import rehearsal
from trimtab_server.engine.runners.opening import open_graph
from trimtab_server.engine.runners.runner import GraphError, Runner

TEXTS = [np.array(ids, np.int32) for ids in ([2, 5, 6, 3], [2, 7, 3], [2, 3], [2, 9, 9, 8, 4, 3])]


@pytest.fixture(params=["onnx", "openvino"])
def runner(request: pytest.FixtureRequest) -> Runtime:
    return request.param


def opened_at(graph: Model) -> Runner:
    return open_graph(graph, "cpu", 0, workers=1)


def made(folder: Path, graph: bytes, *outputs: OutputSpec, most: int = 64, runner: Runtime = "onnx") -> Model:
    path = folder / "model.onnx"
    path.write_bytes(graph)
    files = (HashedFile(path.name, len(graph), hashlib.sha256(graph).hexdigest()),)
    return model(folder=folder, files=files, most=most, outputs=outputs or ALL, runner=runner)


@pytest.mark.parametrize(
    "wanted", [("dense",), ("tokens",), ("sparse.indices", "sparse.values"), tuple(each.name for each in ALL)]
)
def test_each_item_gets_its_own_rows(tmp_path: Path, wanted: tuple[str, ...], runner: Runtime) -> None:
    opened = opened_at(made(tmp_path, ragged_made.graph(), runner=runner))
    result = opened.run(batch(*TEXTS), wanted)
    assert result.keys() == set(wanted)
    for place, ids in enumerate(TEXTS):
        for name in wanted:
            item = result[name].item(place)
            np.testing.assert_allclose(item, ragged_made.expected(ids)[name], atol=1e-6)
            assert item.dtype == (np.int32 if name == "sparse.indices" else np.float32)


def declared(spec: OutputSpec, **changes: Any) -> OutputSpec:
    return replace(spec, **changes)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (declared(TOKENS, offsets="nowhere"), "no output 'nowhere', but embeddings, .*token_vectors"),
        (
            declared(TOKENS, offsets="indices"),
            r"'indices' of the graph is tensor\(int32\), not tensor\(int64\)",
        ),
        (
            declared(TOKENS, offsets="values"),
            r"'values' of the graph is tensor\(float\), not tensor\(int64\)",
        ),
        (declared(TOKENS, width=17), "says 17 dimensions"),
        (declared(INDICES, dtype="int64"), r"'indices' of the graph is tensor\(int32\), not tensor\(int64\)"),
        (declared(VALUES, tensor="token_vectors"), "'token_vectors' of the graph is of shape"),
    ],
)
def test_what_a_manifest_may_not_say_of_a_graph(
    tmp_path: Path, output: OutputSpec, message: str, runner: Runtime
) -> None:
    with pytest.raises(GraphError, match=message):
        opened_at(made(tmp_path, ragged_made.graph(), DENSE, output, runner=runner))


TWICE = helper.make_node("Concat", ["offsets", "sums"], ["more"], axis=0)
LESS = helper.make_node("Sub", ["offsets", "one"], ["less"])
NEGATIVE = helper.make_node("Neg", ["offsets"], ["negative"])
DOUBLE = helper.make_node("Concat", ["packed", "packed"], ["double"], axis=0)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (ragged_made.graph([TWICE], ends="more"), "offsets that do not split 15 rows into 4 items as tokens"),
        (ragged_made.graph([LESS], ends="less"), "offsets that do not split"),
        (ragged_made.graph([NEGATIVE], ends="negative"), "offsets that do not split"),
        (ragged_made.graph([DOUBLE], rows="double"), "offsets that do not split 30 rows"),
    ],
)
def test_offsets_are_looked_at(tmp_path: Path, graph: bytes, message: str, runner: Runtime) -> None:
    opened = opened_at(made(tmp_path, graph, runner=runner))
    with pytest.raises(GraphError, match=message):
        opened.run(batch(*TEXTS), ("tokens",))


def test_an_item_has_no_more_rows_than_the_manifest_says(tmp_path: Path, runner: Runtime) -> None:
    few = declared(TOKENS, most=5)
    opened = opened_at(made(tmp_path, ragged_made.graph(), DENSE, few, runner=runner))
    assert len(opened.run(batch(*TEXTS[:3]), ("tokens",))["tokens"]) == 3
    with pytest.raises(GraphError, match="gave an item 6 rows as tokens, and its manifest says at most 5"):
        opened.run(batch(*TEXTS), ("tokens",))


LONGER = helper.make_node("Add", ["packed", "packed"], ["longer"])


def rehearsed(graph: Model) -> None:
    rehearsal.rehearse(rehearsal.GraphPiece(graph, "cpu", 0), lambda: None)


def test_a_graph_of_several_outputs_is_rehearsed(tmp_path: Path, runner: Runtime) -> None:
    rehearsed(made(tmp_path, ragged_made.graph(), runner=runner))
    with pytest.raises(GraphError, match=r"vector of length .*and its manifest says"):
        rehearsed(made(tmp_path, ragged_made.graph([LONGER], rows="longer"), runner=runner))


@pytest.mark.parametrize(
    ("mine", "theirs", "alike"),
    [
        (([1, 5], [2.0, 1.0]), ([1, 5], [2.0, 1.0]), True),
        (([1, 5], [2.0, 1.0]), ([5, 1], [1.0, 2.0]), True),  # the order is nothing
        (([1, 5], [2.0, 1.0]), ([1, 5, 9], [2.0, 1.0, 1e-4]), True),  # an entry that hovers around zero
        (([1, 5], [2.0, 1.0]), ([2, 5], [2.0, 1.0]), False),
        (([], []), ([], []), True),
    ],
)
def test_sparse_vectors_are_compared_by_place(mine: Any, theirs: Any, alike: bool) -> None:
    def result(indices: list[int], values: list[float]) -> dict[str, Column]:
        offsets = np.array([0, len(indices)], np.int64)
        return {
            "sparse.indices": Column(np.array(indices, np.int32), offsets),
            "sparse.values": Column(np.array(values, np.float32), offsets),
        }

    least = rehearsal.likeness(model(outputs=(INDICES, VALUES)), result(*mine), result(*theirs))
    assert bool(least > rehearsal.SAME_AGAIN) is alike


@pytest.mark.parametrize(
    ("mine", "theirs", "alike"),
    [
        (0.5, 0.5, True),
        (2e-5, -1e-5, True),  # rounding on both sides of zero
        (0.5, 0.9, False),  # another score of the same sign
        (400.0, 400.01, True),
        (400.0, 404.0, False),
    ],
)
def test_a_score_is_compared_by_its_value(mine: float, theirs: float, alike: bool) -> None:
    """A number alone has a cosine of 1 to any other of its sign."""

    def result(value: float) -> dict[str, Column]:
        return {"scores": Column(np.array([[value]], np.float32))}

    scores = OutputSpec("scores", "scores", 1)
    least = rehearsal.likeness(model(outputs=(scores,)), result(mine), result(theirs))
    assert bool(least > rehearsal.SAME_AGAIN) is alike
