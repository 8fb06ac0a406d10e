"""The grafted head alone, on a graph that looks states up in a table: every opset, pooling and layer."""

from pathlib import Path

import head_reference as reference
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trimtab.errors import ExportError
from trimtab_export.graph import head
from trimtab_export.source import Dense, Graph, Head, Normalize

RANDOM = np.random.default_rng(3)
TABLE = RANDOM.normal(size=(50, 6)).astype(np.float32)
WEIGHT = RANDOM.normal(size=(4, 6)).astype(np.float32)
BIAS = RANDOM.normal(size=4).astype(np.float32)
POOLINGS = ("mean", "cls", "last", "max")
LAYERS = (Dense(WEIGHT, BIAS, "Tanh"), Normalize())


def lookup(path: Path, opset: int, output: str = "last_hidden_state", ir_version: int = 8) -> Graph:
    """A graph whose token states are rows of TABLE."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], [output], axis=0)],
        "lookup",
        inputs,
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", "length", 6])],
        [numpy_helper.from_array(TABLE, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, str(path))
    return Graph(path, output)


def grafted(folder: Path, layout: Head, opset: int, **options: object) -> onnxruntime.InferenceSession:
    dimensions = 4 if any(isinstance(layer, Dense) for layer in layout.layers) else 6
    files = head.graft_dense(lookup(folder / "in.onnx", opset, **options), layout, dimensions, folder / "out")
    session = onnxruntime.InferenceSession(str(files[0]), providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("embeddings", "tensor(float)", ["batch", dimensions])
    return session


def batch(lengths: list[int], extra: int = 0) -> dict[str, NDArray[np.int64]]:
    mask = np.zeros((len(lengths), max(lengths) + extra), dtype=np.int64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    ids = np.random.default_rng(sum(lengths)).integers(0, 50, size=mask.shape)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("layers", [(), LAYERS[:1], LAYERS[1:], LAYERS, (Dense(WEIGHT, None, "ReLU"),)])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 20])
def test_grafted_nodes_do_what_numpy_does(opset: int, pooling: str, layers: tuple, tmp_path: Path) -> None:
    layout = Head(pooling, layers)
    session = grafted(tmp_path, layout, opset)
    inputs = batch([5, 1, 9, 3], extra=2)
    states = TABLE[inputs["input_ids"]]
    wanted = reference.apply(layout, states, inputs["attention_mask"])
    np.testing.assert_allclose(session.run(None, inputs)[0], wanted, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    pooling=st.sampled_from(POOLINGS),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    extra=st.integers(0, 9),
    shuffle=st.randoms(use_true_random=False),
)
def test_a_row_is_its_own(tmp_path_factory, pooling, lengths, extra, shuffle) -> None:  # type: ignore[no-untyped-def]
    """Alone, in any order, under any padding, whatever the pads hold: the same vector."""
    session = grafted(tmp_path_factory.mktemp("head"), Head(pooling, LAYERS), 18)
    inputs = batch(lengths, extra)
    together = session.run(None, inputs)[0]
    order = list(range(len(lengths)))
    shuffle.shuffle(order)
    moved = session.run(None, {name: ids[order] for name, ids in inputs.items()})[0]
    np.testing.assert_allclose(moved, together[order], atol=1e-6)
    for row, length in enumerate(lengths):
        single = {name: ids[row : row + 1, :length] for name, ids in inputs.items()}
        np.testing.assert_allclose(session.run(None, single)[0][0], together[row], atol=1e-6)


def test_a_vector_of_length_zero_stays_zero(tmp_path: Path) -> None:
    layout = Head("mean", (Dense(np.zeros((4, 6), np.float32), None, "Identity"), Normalize()))
    vectors = grafted(tmp_path, layout, 18).run(None, batch([3]))[0]
    assert np.array_equal(vectors, np.zeros((1, 4), np.float32))


def test_source_whose_states_are_called_embeddings(tmp_path: Path) -> None:
    """The name of the bundle's output is taken in some graphs, which then fail to load."""
    inputs = batch([4, 2])
    session = grafted(tmp_path, Head("cls"), 18, output="embeddings")
    np.testing.assert_array_equal(session.run(None, inputs)[0], TABLE[inputs["input_ids"][:, 0]])


def test_old_file_format(tmp_path: Path) -> None:
    """Before version 4 of the format, constants had to be inputs, too."""
    grafted(tmp_path, Head("max", LAYERS), 11, ir_version=3)


def test_too_old_opset(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"opset 10; pooling needs 11 or later"):
        head.graft_dense(lookup(tmp_path / "in.onnx", 10), Head("mean"), 6, tmp_path / "out")
