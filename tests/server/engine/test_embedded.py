"""Graphs with their external data put inside, and nothing else changed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import hostile
from trimtab.artifacts import bundle as bundles
from trimtab_server.engine.runners import embedded as module
from trimtab_server.engine.runners.embedded import embedded
from trimtab_server.engine.runners.runner import GraphError

NAME = "all-minilm-l6-v2"
WEIGHTS = "weights.bin"


def outside(tensor: TensorProto, location: str = WEIGHTS, **where: object) -> bytes:
    """Move a tensor's data out, and return it."""
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **where}.items():
        tensor.external_data.add(key=key, value=str(value))
    return data


def apart(**where: object) -> tuple[onnx.ModelProto, bytes]:
    """The good encoder's graph with its table outside, and that."""
    model = onnx.load_from_string(hostile.encoder())
    return model, outside(next(each for each in model.graph.initializer if each.name == "table"), **where)


def test_a_real_graph_is_the_same_otherwise(minilm_repository: Path) -> None:
    folder = minilm_repository / NAME / "1"
    graph, *rest = (folder / file.path for file in bundles.read(folder).manifest.variants[0].files)
    data = {path.name: bytearray(path.read_bytes()) for path in rest}
    found = onnx.load_from_string(embedded(graph.read_bytes(), data, {}))
    expected = onnx.load(str(graph))  # with its external data
    for tensor in expected.graph.initializer:
        tensor.ClearField("data_location")
    assert found == expected


@pytest.mark.parametrize("where", [{}, {"offset": 8}, {"offset": 8, "length": hostile.TABLE.nbytes}])
def test_a_part_of_a_file(where: dict[str, int]) -> None:
    model, data = apart(**where)
    before = bytes(where.get("offset", 0))
    behind = bytes(3) if "length" in where else b""
    whole = embedded(model.SerializeToString(), {WEIGHTS: bytearray(before + data + behind)}, {})
    assert onnx.load_from_string(whole) == onnx.load_from_string(hostile.encoder())


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"location": "/etc/passwd"}, "reads 'table' from '/etc/passwd', which its manifest does not name"),
        ({"location": "../weights.bin"}, "does not name"),
        ({"offset": 1 << 40}, "beyond the end of 'weights.bin'"),
        ({"offset": -1}, "beyond the end"),
        ({"length": 1 << 60}, "beyond the end"),
        ({"length": "many"}, "beyond the end"),
        ({"length": "9" * 5000}, "beyond the end"),
    ],
)
def test_what_is_not_there_is_refused(where: dict[str, object], words: str) -> None:
    model, data = apart(**where)
    with pytest.raises(GraphError, match=words):
        embedded(model.SerializeToString(), {WEIGHTS: bytearray(data)}, {})


def inner(tensor: TensorProto) -> list[onnx.ModelProto]:
    """Graphs with a tensor in every place that a graph has for one."""
    made = [onnx.load_from_string(hostile.encoder()) for _ in range(5)]
    shape = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)
    identity = helper.make_node("Identity", ["inner"], ["chosen"])
    branch = helper.make_graph([identity], "branch", [], [shape], [tensor])
    made[0].graph.node.append(helper.make_node("Constant", [], ["inner"], value=tensor))
    made[1].graph.node.append(
        helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)
    )
    sparse = helper.make_sparse_tensor(tensor, numpy_helper.from_array(np.array([0])), [3])
    made[2].graph.sparse_initializer.append(sparse)
    made[3].graph.node.append(helper.make_node("Constant", [], ["inner"], sparse_value=sparse))
    function = helper.make_function(
        "", "F", [], ["inner"], [helper.make_node("Constant", [], ["inner"], value=tensor)],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    made[4].functions.append(function)
    return made


@pytest.mark.parametrize("place", range(5))
def test_no_tensor_is_overlooked(place: int) -> None:
    tensor = numpy_helper.from_array(np.arange(300, dtype=np.float32), "inner")
    expected = inner(tensor)[place]
    data = outside(tensor)
    model = inner(tensor)[place]
    with pytest.raises(GraphError, match=r"reads 'inner' from 'weights\.bin'"):
        embedded(model.SerializeToString(), {}, {})
    whole = embedded(model.SerializeToString(), {WEIGHTS: bytearray(data)}, {})
    assert onnx.load_from_string(whole) == expected


def test_operators_within_operators_are_seen() -> None:
    model = onnx.load_from_string(hostile.encoder())
    body = helper.make_graph([helper.make_node("Loop", [], ["x"])], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["yes"], ["out"], then_branch=body, else_branch=body))
    with pytest.raises(GraphError, match="has the operator Loop, for this reason"):
        embedded(model.SerializeToString(), {}, {"Loop": "for this reason"})


def test_more_than_a_message_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = apart()
    monkeypatch.setattr(module, "MOST_BYTES", len(data))
    with pytest.raises(GraphError, match="serve a variant for ONNX Runtime"):
        embedded(model.SerializeToString(), {WEIGHTS: bytearray(data)}, {})
