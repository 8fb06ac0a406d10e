"""Every architecture, pooling and layer: the bundle's vectors are those of sentence-transformers."""

from pathlib import Path

import numpy as np
import pytest
import tiny_encoders
import torch
from embedder import Embedder
from tiny_encoders import Export, Layers

from trimtab_export import sentences

POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}
TEXTS = [*sentences.load(), " ".join(sentences.load()), "x"]


def assert_same(source: Path, bundle: Path, prompt: str = "") -> None:
    embed = Embedder(bundle)
    got = embed(TEXTS, prompt)
    wanted = tiny_encoders.encode(source, TEXTS, prompt, embed.bundle.manifest.max_tokens)
    assert got.dtype == np.float32
    # Rows of their own: random encoders that map all texts to one vector would pass any comparison.
    assert len(np.unique(wanted.round(3), axis=0)) > len(TEXTS) / 2
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_architecture(architecture: str, tmp_path: Path, export: Export) -> None:
    source = tiny_encoders.sentence_transformers(architecture, tmp_path)
    bundle = export(source)
    assert_same(source, bundle)
    manifest = Embedder(bundle).bundle.manifest
    padded_offset = {"roberta": 2, "xlm-roberta": 2, "mpnet": 2}.get(architecture, 0)
    assert manifest.max_tokens == 130 - padded_offset
    assert ("token_type_ids" in manifest.variants[0].inputs) == (architecture == "bert")
    assert manifest.pad_id == (1 if padded_offset else 0)
    assert manifest.normalized


@pytest.mark.parametrize("mode", POOLINGS)
def test_pooling(mode: str, tmp_path: Path, export: Export) -> None:
    source = tiny_encoders.sentence_transformers("roberta", tmp_path, pooling=mode, layers=Layers())
    bundle = export(source)
    assert_same(source, bundle)
    manifest = Embedder(bundle).bundle.manifest
    assert manifest.pooling == POOLINGS[mode]
    assert not manifest.normalized
    vectors = Embedder(bundle)(TEXTS)
    assert manifest.int8_limit >= np.abs(vectors[: len(sentences.load())]).max() - 1e-5


@pytest.mark.parametrize(
    ("activation", "normalize"),
    [
        (torch.nn.Tanh, True),
        (torch.nn.Tanh, False),
        (torch.nn.Identity, True),
        (torch.nn.ReLU, False),
        (torch.nn.Sigmoid, False),
    ],
)
def test_dense(activation: type[torch.nn.Module], normalize: bool, tmp_path: Path, export: Export) -> None:
    source = tiny_encoders.sentence_transformers(
        "distilbert", tmp_path, layers=Layers(dense=True, normalize=normalize), activation=activation()
    )
    bundle = export(source)
    assert_same(source, bundle)
    manifest = Embedder(bundle).bundle.manifest
    assert manifest.dimensions == 24
    assert manifest.normalized == normalize


def test_prompts_are_part_of_the_texts_and_of_the_space(tmp_path: Path, export: Export) -> None:
    source = tiny_encoders.sentence_transformers(
        "xlm-roberta", tmp_path, prompts={"query": "query: ", "document": "passage: "}
    )
    manifest = Embedder(export(source)).bundle.manifest
    assert (manifest.prompts.query, manifest.prompts.passage) == ("query: ", "passage: ")
    assert_same(source, tmp_path / "repository" / "tiny" / "1", prompt="query: ")
    # Both roles are checked where their prompts differ.
    assert manifest.variants[0].report.parity.texts == 2 * (len(sentences.load()) + 1)

    other = Embedder(export(source, "--query-prompt", "q: ", name="other")).bundle.manifest
    assert (other.prompts.query, other.prompts.passage) == ("q: ", "passage: ")
    assert other.space != manifest.space


def test_max_seq_length_of_the_source_cuts_texts(tmp_path: Path, export: Export) -> None:
    source = tiny_encoders.sentence_transformers("bert", tmp_path, max_seq_length=11)
    bundle = export(source)
    assert Embedder(bundle).bundle.manifest.max_tokens == 11
    assert_same(source, bundle)


def test_huggingface_folder_with_a_given_head(bert: Path, st_bert: Path, export: Export) -> None:
    """The same weights and the same head are the same space, wherever the head was declared."""
    bare = Embedder(export(bert, "--pooling", "mean", "--normalize")).bundle.manifest
    declared = Embedder(export(st_bert, name="declared")).bundle.manifest
    plain = Embedder(export(bert, "--pooling", "mean", name="plain")).bundle.manifest
    assert bare.space == declared.space
    assert plain.space != declared.space
    assert bare.output.space_parts == plain.output.space_parts


def test_weights_of_half_precision_are_served_as_float32(bert: Path, tmp_path: Path, export: Export) -> None:
    import transformers

    model = transformers.BertModel.from_pretrained(bert).half()
    model.save_pretrained(tmp_path / "half")
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "half")
    vectors = Embedder(export(tmp_path / "half", "--pooling", "cls"))(TEXTS)
    assert vectors.dtype == np.float32


def test_external_data(st_bert: Path, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2 GB a graph keeps its weights beside it; optimum can be told to do so with a small one."""
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    bundle = export(st_bert)
    files = Embedder(bundle).bundle.manifest.variants[0].files
    assert [file.path for file in files] == ["fp32/model.onnx", "fp32/weights.bin"]
    assert files[0].size < files[1].size
    assert_same(st_bert, bundle)


def test_default_version_is_the_next(st_bert: Path, export: Export) -> None:
    first = export(st_bert)
    second = export(st_bert).parent / "2"
    a, b = Embedder(first).bundle.manifest, Embedder(second).bundle.manifest
    assert (a.version, b.version) == (1, 2)
    assert a.space == b.space
