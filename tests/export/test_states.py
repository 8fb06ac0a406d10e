"""Pooled inner states: the torch module's own, beside the same embedding, over the same weights."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_encoders
from embedder import Embedder
from onnx import helper
from tiny_encoders import Export

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import manifest as manifests
from trimtab_export import sentences
from trimtab_export.graph import states, to_onnx
from trimtab_export.load import load
from trimtab_export.source import Graph, Settings
from trimtab_export.steps import quiet

TEXTS = [*sentences.load()[:8], "", "many more words of text " * 12]


def joined(bundle: Path, texts: list[str]) -> tuple[Any, manifests.Manifest]:
    """What the graph with states answers, and the manifest."""
    embed = Embedder(bundle)
    manifest = embed.bundle.manifest
    declared = manifest.variants[0].states
    assert declared is not None
    embed.session = onnxruntime.InferenceSession(
        str(embed.bundle.file(declared.file)), providers=["CPUExecutionProvider"]
    )
    return embed(texts), manifest


def pooled_by_torch(source: Path, text: str) -> Any:
    from sentence_transformers import SentenceTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = SentenceTransformer(str(source), device="cpu")[0]
        transformer.max_seq_length = 120
        backbone = transformer.auto_model.eval()
        inputs = transformer.tokenizer(text, return_tensors="pt", truncation=True, max_length=120)
        layers = backbone(**inputs, output_hidden_states=True).hidden_states
    return np.concatenate([layer[0].mean(dim=0).detach().numpy() for layer in layers])


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_they_are_the_means_of_the_hidden_states_of_torch(
    architecture: str, tmp_path: Path, export: Export
) -> None:
    source = tiny_encoders.sentence_transformers(architecture, tmp_path)
    bundle = export(source, "--max-tokens", "120")
    rows, manifest = joined(bundle, TEXTS)
    declared = manifest.variants[0].states
    assert declared is not None
    assert (declared.layers, declared.width) == (3, 3 * 32)
    assert rows.shape == (len(TEXTS), manifest.dimensions + declared.width)
    np.testing.assert_allclose(rows[:, : manifest.dimensions], Embedder(bundle)(TEXTS), atol=1e-6)
    for row, text in zip(rows, TEXTS, strict=True):
        np.testing.assert_allclose(row[manifest.dimensions :], pooled_by_torch(source, text), atol=1e-4)
    alone = np.concatenate([joined(bundle, [text])[0] for text in TEXTS[-3:]])
    np.testing.assert_allclose(rows[-3:], alone, atol=1e-5)

    model = onnx.load(str(bundle / declared.file.path), load_external_data=False)
    assert any(node.name.startswith("unpad/") for node in model.graph.node), "its padding is taken out, too"
    weights = bundle / "fp32" / "weights.bin"
    assert declared.file.path not in [file.path for file in manifest.variants[0].files]
    assert declared.file.size < 200_000 < weights.stat().st_size * 10
    assert weights.stat().st_mode & 0o777 == (bundle / "manifest.json").stat().st_mode & 0o777


def onnx_of(source: Path, folder: Path) -> Path:
    """The source's graph as optimum makes it, with the tokenizer's files beside it."""
    folder.mkdir()
    with quiet():
        to_onnx.states_graph(load(Settings(str(source))), folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_the_structure_alone_finds_the_same_layers(architecture: str, tmp_path: Path, export: Export) -> None:
    """An ONNX source has no torch module to compare with."""
    source = tiny_encoders.sentence_transformers(architecture, tmp_path)
    first = export(source, "--max-tokens", "120")
    wanted, _ = joined(first, TEXTS)
    graph = onnx_of(source, tmp_path / "graph")
    again = export(graph, "--pooling", "mean", "--normalize", "--max-tokens", "120", name="again")
    np.testing.assert_allclose(joined(again, TEXTS)[0], wanted, atol=1e-5)


def test_a_graph_without_such_layers_goes_without(
    st_bert: Path, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = onnx_of(st_bert, tmp_path / "graph")
    model = onnx.load(str(graph / "model.onnx"))
    last = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    epsilon = helper.make_attribute("epsilon", 0.5)
    more = helper.make_node("LayerNormalization", [last.output[0], *last.input[1:]], ["more"])
    more.attribute.append(epsilon)
    model.graph.node.insert(list(model.graph.node).index(last) + 1, more)
    model.graph.output[0].name = "more"
    onnx.save(model, str(graph / "model.onnx"))
    bundle = bundles.read(export(graph, "--pooling", "mean", "--normalize", "--output", "more"))
    assert bundle.manifest.variants[0].states is None
    assert not (bundle.path / "fp32" / "model-with-states.onnx").exists()
    assert "finding the inner states ... not found in this graph" in capsys.readouterr().err


def test_a_graph_that_fails_its_check_is_left_out(
    st_bert: Path, export: Export, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = states.write

    def cropped(graph: Path, layers: list[str]) -> Path:
        path = write(graph, layers)
        model = onnx.load(str(path), load_external_data=False)
        concat = [node for node in model.graph.node if node.op_type == "Concat"][-1]
        concat.input[:] = [concat.input[1], concat.input[0], *concat.input[2:]]
        onnx.save(model, str(path))
        return path

    monkeypatch.setattr(states, "write", cropped)
    bundle = bundles.read(export(st_bert))
    assert bundle.manifest.variants[0].states is None
    assert not (bundle.path / "fp32" / "model-with-states.onnx").exists()
    assert "gives other embeddings" in capsys.readouterr().err


def test_a_module_without_hidden_states_has_none(tiny_bundle: Path) -> None:
    import torch

    class Silent(torch.nn.Module):
        def forward(self, output_hidden_states: bool) -> None:
            assert output_hidden_states

    ones = np.ones((1, 3), np.int64)
    batch = {"attention_mask": ones, "input_ids": ones, "token_type_ids": ones}
    graph = tiny_bundle / "fp32" / "model.onnx"
    assert states.hidden_states(graph, Silent(), batch) == []


def test_a_graph_with_its_padding_taken_out_has_no_layers_to_pool(tiny_bundle: Path) -> None:
    graph = tiny_bundle / "fp32" / "model.onnx"
    assert states.hidden_states(graph, Graph(graph, "embeddings"), {}) == []
