"""Taking the padding out: the same vectors, from real tokens alone."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_encoders
from embedder import Embedder
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tiny_encoders import Export

from trimtab_export.graph import unpad

TEXTS = ["a", "a few words of text", "many more words of text " * 6, ""]


def graph_of(bundle: Path) -> Path:
    return bundle / "fp32" / "model.onnx"


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_every_linear_layer_computes_real_tokens_alone(
    architecture: str, tmp_path: Path, export: Export
) -> None:
    bundle = export(tiny_encoders.sentence_transformers(architecture, tmp_path))
    embed = Embedder(bundle)
    assert embed.bundle.manifest.variants[0].unpadded
    model = onnx.load(str(graph_of(bundle)))
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    assert len(products) >= 6 * 2, "six products a layer, two layers"
    for node in products:
        model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = [row.ids for row in embed.tokenizer.encode_batch(TEXTS)]
    longest = max(map(len, rows))
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
    ids = np.array([row + [embed.bundle.manifest.pad_id] * (longest - len(row)) for row in rows], np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    computed = session.run(
        [node.output[0] for node in products],
        {name: feeds[name] for name in embed.bundle.manifest.variants[0].inputs},
    )
    assert {len(product) for product in computed} == {sum(map(len, rows))}


@pytest.fixture(scope="module")
def embed(minilm_repository: Path) -> Embedder:
    return Embedder(minilm_repository / "all-minilm-l6-v2" / "1")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(0, 5))
def test_padding_changes_nothing(embed: Embedder, lengths: list[int], extra: int) -> None:
    texts = [" ".join(["word"] * length) for length in lengths]
    alone = np.concatenate([embed([text]) for text in texts])
    np.testing.assert_allclose(embed(texts, extra_pads=extra), alone, atol=1e-5)


def test_a_graph_without_a_layer_norm_is_left_alone(tmp_path: Path) -> None:
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["states"], ["embeddings"])],
        "plain",
        [
            tensor("states", TensorProto.FLOAT, ["n", "length", 4]),
            tensor("attention_mask", TensorProto.INT64, ["n", "length"]),
        ],
        [tensor("embeddings", TensorProto.FLOAT, ["n", "length", 4])],
    )
    for opset in (12, 18):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        before = model.SerializeToString()
        assert unpad.unpad(model) == 0
        assert model.SerializeToString() == before


def test_a_rewrite_that_changes_a_vector_is_not_kept(
    minilm_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embed: Embedder
) -> None:
    folder = shutil.copytree(minilm_repository / "all-minilm-l6-v2" / "1" / "fp32", tmp_path / "fp32")
    path = folder / "model.onnx"
    files = sorted(folder.iterdir())

    def wrong(model: onnx.ModelProto) -> int:
        model.graph.node[-1].input[0] = model.graph.node[-2].input[0]  # the vector before it is normalised
        return 1

    monkeypatch.setattr(unpad, "unpad", wrong)
    before = path.read_bytes()
    ids = np.array([[101, 7592, 102], [101, 102, 0]], np.int64)
    mask = np.array([[1, 1, 1], [1, 1, 0]], np.int64)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    assert unpad.take_padding_out(path, batch) == 0
    assert path.read_bytes() == before
    assert sorted(folder.iterdir()) == files
