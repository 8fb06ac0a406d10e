"""What rewrites of a graph have in common."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from trimtab_export.graph import editing


def graph(*nodes: Any, constants: str = "") -> Any:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    tensors = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in constants]
    return helper.make_graph(list(nodes), "g", [], [output], tensors)


def test_what_a_branch_reads_is_used() -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Identity", [constant], ["y"])], name, [],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )
        for name, constant in (("then", "a"), ("else", "made"))
    }  # fmt: skip
    whole = graph(
        helper.make_node("Identity", ["b"], ["made"]),
        helper.make_node("Identity", ["c"], ["unread"]),
        helper.make_node("If", ["d"], ["y"], **branches),
        constants="abcd",
    )
    editing.drop_unused(whole)
    assert [node.output[0] for node in whole.node] == ["made", "y"]
    assert [tensor.name for tensor in whole.initializer] == ["a", "b", "d"]


def test_an_optional_input_that_is_left_out_keeps_nothing() -> None:
    whole = graph(
        helper.make_node("Dropout", ["a"], ["unread", ""]),
        helper.make_node("Clip", ["a", "", "b"], ["y"]),
        constants="ab",
    )
    editing.drop_unused(whole)
    assert [node.op_type for node in whole.node] == ["Clip"]


def test_attributes_have_values_or_defaults() -> None:
    node = helper.make_node("Gather", ["a", "b"], ["y"], axis=2)
    assert editing.attribute(node, "axis", -1) == 2
    assert editing.attribute(node, "batch_dims", 7) == 7
