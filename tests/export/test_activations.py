"""int8 keeps what it should: outliers in channels and in tokens, weights whose pairs fit, rows of tables."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from trimtab_export.graph.head import OUTPUT, save
from trimtab_export.passes import quantize, ranges, tables
from trimtab_export.passes.linear import Writer

WORDS, WIDTH, WIDE = 400, 256, 512
LOUD = 7  # a channel far beyond the others


def encoder(
    folder: Path, *, loud: float = 1.0, rare: bool = False, packed: bool = True, opset: int = 18
) -> Path:
    """Words to rows of a table, a product, ReLU, a product; (tokens, out), or (1, tokens, out)."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
    gain = np.ones(WIDTH, np.float32)
    gain[LOUD] = loud
    first = rng.normal(size=(WIDTH, WIDE)).astype(np.float32) / WIDTH**0.5
    first[LOUD] /= loud
    if rare:  # one token of forty, to which half of the neurons answer loudly
        table[:, 0], table[::40, 0] = 0, 3
        first[0, ::2] = 10
    second = rng.normal(size=(WIDE, 24)).astype(np.float32) / WIDE**0.5
    constants = {
        "table": table,
        "gain": gain,
        "w1": first,
        "b1": np.full(WIDE, 0.1, np.float32),
        "w2": second,
    }
    tensor = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Squeeze", ["input_ids", "axis"], ["flat"]),
        helper.make_node("Gather", ["table", "flat" if packed else "input_ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "gain"], ["x"]),
        helper.make_node("MatMul", ["x", "w1"], ["product"]),
        helper.make_node("Add", ["product", "b1"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
        helper.make_node("MatMul", ["y", "w2"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [tensor(name, TensorProto.INT64, [1, "tokens"]) for name in ("input_ids", "attention_mask")],
        [tensor(OUTPUT, TensorProto.FLOAT, ["tokens", 24] if packed else [1, "tokens", 24])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()]
        + [numpy_helper.from_array(np.array([0], np.int64), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return save(model, folder / "model.onnx")[0]


def tokens(*ids: int) -> dict[str, Any]:
    return {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}


def run(graph: Path, ids: Any) -> Any:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]})[0]


def operators(graph: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(graph), load_external_data=False).graph.node]


TEXTS = [tokens(*range(start, start + 20)) for start in range(0, 200, 20)]
UNSEEN = tokens(*range(200, 400))


def error(graph: Path, exact: Any) -> float:
    return float(np.linalg.norm(run(graph, UNSEEN) - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(("loud", "rare"), [(1.0, False), (300.0, False), (1.0, True)])
def test_loud_channels_and_loud_tokens_cost_the_others_little(
    tmp_path: Path, loud: float, rare: bool
) -> None:
    graph = encoder(tmp_path, loud=loud, rare=rare)
    (int8, *_) = quantize.to_int8(graph, TEXTS, tmp_path / "int8")
    names = [tensor.name for tensor in onnx.load(str(int8)).graph.initializer]
    assert ("int8/x/factors" in names) == (loud > 1 or rare), "divided where that gains"
    assert ("ReduceMax" in operators(int8)) == rare, "scaled by token where that gains"
    exact, got = run(graph, UNSEEN), run(int8, UNSEEN)
    quiet = np.arange(len(exact)) % 40 > 0
    assert np.linalg.norm((got - exact)[quiet]) < 0.06 * np.linalg.norm(exact[quiet])


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_a_token_has_its_own_scale_whatever_stands_beside_it(tmp_path: Path, opset: int) -> None:
    graph = encoder(tmp_path / "fp32", rare=True, opset=opset)
    (int8, *_) = quantize.to_int8(graph, TEXTS, tmp_path / "int8")
    assert "ReduceMax" in operators(int8)
    together = run(int8, UNSEEN)
    for place in (0, 57, 199):
        alone = run(int8, tokens(200 + place))
        np.testing.assert_allclose(together[place], alone[0], rtol=1e-6, atol=1e-6)


def test_a_graph_with_its_padding_in_has_fixed_scales(tmp_path: Path) -> None:
    graph = encoder(tmp_path / "fp32", rare=True, packed=False)
    (int8, *_) = quantize.to_int8(graph, TEXTS, tmp_path / "int8")
    assert "ReduceMax" not in operators(int8)
    assert error(int8, run(graph, UNSEEN)) < 0.1


def test_ranges_are_of_channels_and_of_tokens(tmp_path: Path) -> None:
    graph = encoder(tmp_path, loud=300.0)
    found = ranges.measure(graph, [tokens(0, 1, 2), tokens(3)])
    constants = {each.name: numpy_helper.to_array(each) for each in onnx.load(str(graph)).graph.initializer}
    table = (constants["table"] * constants["gain"])[:4]
    seen = found["x"]
    np.testing.assert_allclose(seen.low, np.minimum(table.min(axis=0), 0))
    np.testing.assert_allclose(seen.high, np.maximum(table.max(axis=0), 0))
    np.testing.assert_allclose(seen.power, np.square(table).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(seen.top, np.square(table.max(axis=1)).mean(), rtol=1e-5)
    assert seen.packed


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_two_neighbours_of_one_sign_fit_into_16_bits(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(width, 5)) * rng.exponential(size=(width, 1))).astype(np.float32)
    integers, scales = quantize.rounded(weight, quantize.largest_pair(weight))
    assert np.abs(integers).max() <= 127
    even = integers[: width // 2 * 2].reshape(-1, 2, 5)
    assert 255 * np.maximum(even, 0).sum(axis=1).max(initial=0) <= 2**15 - 1
    assert 255 * np.minimum(even, 0).sum(axis=1).min(initial=0) >= -(2**15)
    assert np.abs(integers * scales - weight).max() <= scales.max() * 0.5001


def test_rows_of_a_table_have_8_bits_and_a_scale_each(tmp_path: Path) -> None:
    path = encoder(tmp_path / "fp32")
    model = onnx.load(str(path))
    tables.to_int8(Writer(model, "small"), model.graph)
    (small, *_) = save(model, tmp_path / "small" / "model.onnx")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert "table" not in stored
    assert stored["small/table/rows"].data_type == TensorProto.INT8
    assert error(small, run(path, UNSEEN)) < 0.01


@pytest.mark.parametrize("least", [1, 1 << 30])
def test_a_small_table_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(tables, "LEAST_BYTES", least)
    model = onnx.load(str(encoder(tmp_path)))
    tables.to_int8(Writer(model, "small"), model.graph)
    assert ("table" in {tensor.name for tensor in model.graph.initializer}) == (least > 1)
