"""Smaller precisions: near to the float32 graph, free of the batch, and truly integer inside."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_encoders
from embedder import Embedder
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import Export

from trimtab.errors import ExportError
from trimtab_export import runtime, sentences
from trimtab_export.graph.head import OUTPUT, save
from trimtab_export.passes import blocks, half, quantize
from trimtab_export.source import TokenizerFile
from trimtab_export.tokens import Collator

TEXTS = [text for text in sentences.load() if text.strip()]


def batcher_of(embed: Embedder) -> Collator:
    return Collator(TokenizerFile(embed.tokenizer.to_str(), embed.bundle.manifest.pad_id), 100)


def calibration(embed: Embedder) -> list[dict[str, Any]]:
    texts = sorted(TEXTS, key=len)
    return [batcher_of(embed)(texts[start : start + 8]) for start in range(0, len(texts), 8)]


def graph_of(embed: Embedder) -> Path:
    return embed.bundle.file(embed.bundle.manifest.variants[0].files[0])


def cosines(one: Any, other: Any) -> Any:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def run(path: Path, batch: dict[str, Any]) -> Any:
    return runtime.run(runtime.session(path, threads=1), OUTPUT, batch)


def executed(path: Path, folder: Path) -> Counter[str]:
    """The operators that are left when ONNX Runtime has optimised the graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(str(folder / "optimised.onnx"), load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_every_linear_layer_multiplies_bytes(architecture: str, tmp_path: Path, export: Export) -> None:
    embed = Embedder(export(tiny_encoders.sentence_transformers(architecture, tmp_path)))
    files = quantize.to_int8(graph_of(embed), calibration(embed), tmp_path / "int8")
    operators = executed(files[0], tmp_path)
    assert operators["MatMulIntegerToFloat"] == 2 * 6
    assert operators["Gemm"] == 0
    assert operators["DequantizeLinear"] == 0
    batch = batcher_of(embed)(TEXTS)
    assert cosines(run(files[0], batch), run(graph_of(embed), batch)).min() > 0.9
    assert sum(path.stat().st_size for path in files) < sum(
        file.size for file in embed.bundle.manifest.variants[0].files
    )

    # For TensorRT the same in operators of the standard: each product is of two dequantised tensors.
    explicit = quantize.to_qdq(graph_of(embed), calibration(embed), tmp_path / "qdq")
    graph = onnx.load(str(explicit[0])).graph
    makers = {node.output[0]: node.op_type for node in graph.node}
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    quantised = [each for each in products if makers.get(each.input[1]) == "DequantizeLinear"]
    assert len(quantised) == 2 * 6
    assert {makers[each.input[0]] for each in quantised} == {"DequantizeLinear"}
    assert not [each for each in products if each.input[1] in constants]
    assert all(node.domain == "" for node in graph.node)
    assert cosines(run(explicit[0], batch), run(graph_of(embed), batch)).min() > 0.9


@pytest.fixture(scope="module")
def real(minilm_repository: Path) -> Embedder:
    return Embedder(minilm_repository / "all-minilm-l6-v2" / "1")


@pytest.fixture(scope="module", params=["int8", "int8-weights", "int4-weights"])
def variant(request: pytest.FixtureRequest, real: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    match request.param:
        case "int8":
            files = quantize.to_int8(graph_of(real), calibration(real), folder)
        case "int8-weights":
            files = blocks.to_blocks(graph_of(real), folder, bits=8)
        case _:
            files = blocks.to_blocks(graph_of(real), folder, bits=4)
    return request.param, files[0]


def test_it_stays_near(variant: tuple[str, Path], real: Embedder) -> None:
    name, graph = variant
    batch = batcher_of(real)(TEXTS)
    least = {"int8": 0.99, "int8-weights": 0.99, "int4-weights": 0.8}[name]
    assert cosines(run(graph, batch), run(graph_of(real), batch)).min() > least


@settings(max_examples=5, deadline=None)
@given(neighbours=st.lists(st.sampled_from(TEXTS), max_size=6), text=st.sampled_from(TEXTS))
def test_a_vector_does_not_change_with_its_neighbours(
    variant: tuple[str, Path], real: Embedder, neighbours: list[str], text: str
) -> None:
    collator = batcher_of(real)
    session = runtime.session(variant[1], threads=1)
    alone = runtime.run(session, OUTPUT, collator([text]))
    together = runtime.run(session, OUTPUT, collator([text, *neighbours, "word " * 90]))[:1]
    assert cosines(alone, together).min() > 0.99999


def test_half_precision(real: Embedder, tmp_path: Path) -> None:
    files = half.to_fp16(graph_of(real), tmp_path / "fp16")
    assert sum(path.stat().st_size for path in files) < 0.55 * 91e6
    batch = batcher_of(real)(TEXTS)
    vectors = run(files[0], batch)
    assert vectors.dtype == np.float32
    assert cosines(vectors, run(graph_of(real), batch)).min() > 0.9999


def test_weights_in_bfloat16_are_computed_in_float32(real: Embedder, tmp_path: Path) -> None:
    files = half.to_bf16(graph_of(real), tmp_path / "bf16")
    assert sum(path.stat().st_size for path in files) < 0.51 * 91e6
    model = onnx.load(str(files[0]))
    (word,) = [tensor for tensor in model.graph.initializer if "word_embeddings" in tensor.name]
    assert word.data_type == TensorProto.BFLOAT16
    batch = batcher_of(real)(TEXTS)
    vectors = run(files[0], batch)
    assert vectors.dtype == np.float32
    exact = run(graph_of(real), batch)
    assert cosines(vectors, exact).min() > 0.9999
    assert not np.array_equal(vectors, exact)
    left = [executed(path, tmp_path)["Cast"] for path in (files[0], graph_of(real))]
    assert left[0] == left[1], "the casts of weights were done when the session was opened"


def test_bfloat16_is_refused_where_the_opset_has_no_such_thing(tmp_path: Path) -> None:
    graph = plain(tmp_path, np.ones((20, 20), np.float32))
    model = onnx.load(str(graph))
    model.opset_import[0].version = 12
    save(model, graph)
    with pytest.raises(ExportError, match=r"model\.onnx is of opset 12; bf16 needs 13 or later"):
        half.to_bf16(graph, tmp_path / "bf16")


def plain(tmp_path: Path, weight: Any) -> Path:
    """A graph of one product."""
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["attention_mask"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["x", "w"] if weight is not None else ["x", "x"], [OUTPUT]),
        ],
        "plain",
        [tensor("attention_mask", TensorProto.INT64, ["n", "length"])],
        [tensor(OUTPUT, TensorProto.FLOAT, ["n", "m"])],
        [] if weight is None else [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return save(model, tmp_path / "model.onnx")[0]


def test_a_graph_without_linear_layers_is_refused(tmp_path: Path) -> None:
    graph = plain(tmp_path, None)
    with pytest.raises(ExportError, match="nothing to quantise"):
        quantize.to_int8(graph, [], tmp_path / "out")
    with pytest.raises(ExportError, match="nothing to store in 4 bits"):
        blocks.to_blocks(graph, tmp_path / "out", bits=4)
    assert not (tmp_path / "out").exists()


def test_the_bias_is_kept_and_a_shared_sum_is_not_taken_for_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(4, 3)).astype(np.float32), np.array([1, 2, 3], np.float32)
    tensor = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["bias", "product"], ["sum"]),
        helper.make_node("MatMul", ["x", "w"], ["again"]),
        helper.make_node("Add", ["again", "sum"], [OUTPUT]),
    ]
    inputs = [tensor("attention_mask", TensorProto.INT64, ["n", 4])]
    outputs = [tensor(OUTPUT, TensorProto.FLOAT, ["n", 3])]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph(nodes, "two", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = save(model, tmp_path / "model.onnx")[0]
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int64)
    (int8, *_) = quantize.to_int8(path, [{"attention_mask": mask}], tmp_path / "int8")
    session = onnxruntime.InferenceSession(str(int8), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"attention_mask": mask})
    np.testing.assert_allclose(got, mask @ weight * 2 + bias, atol=0.1)
