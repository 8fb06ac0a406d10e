"""A real encoder, exported once: manifest, vectors, space, `trimtab info`."""

import argparse
import json
import shlex
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_encoders
from embedder import Embedder
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import manifest as manifests
from trimtab.artifacts import space
from trimtab.commands import info
from trimtab_export import cli, sentences


@pytest.fixture(scope="module")
def minilm(minilm_repository: Path) -> Embedder:
    return Embedder(minilm_repository / "all-minilm-l6-v2" / "1")


@pytest.fixture(scope="module")
def alone(minilm: Embedder) -> np.ndarray:
    """The vector of each shipped sentence, made in a batch of one."""
    return np.concatenate([minilm([text]) for text in sentences.load()])


def test_manifest(minilm: Embedder, minilm_repository: Path) -> None:
    manifest = minilm.bundle.manifest
    assert (manifest.name, manifest.version) == ("all-minilm-l6-v2", 1)
    assert (manifest.dimensions, manifest.max_tokens, manifest.pad_id) == (384, 256, 0)
    assert (manifest.similarity, manifest.pooling, manifest.normalized) == ("cosine", "mean", True)
    assert manifest.prompts == manifests.Prompts()
    assert manifest.space == space.digest(manifest.output, manifest.inputs)
    assert manifest.towers[0].input == "text" and manifest.towers[0].outputs == ("dense",)
    (variant,) = manifest.variants
    assert (variant.name, variant.precision) == ("fp32", "fp32")
    assert variant.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert [file.path for file in variant.files] == ["fp32/model.onnx", "fp32/weights.bin"]
    assert variant.states is not None
    assert (variant.states.layers, variant.states.width) == (7, 7 * 384)
    assert [(row.batch, row.length) for row in variant.report.speed] == [
        (1, 16), (1, 128), (8, 16), (32, 16), (8, 128)]  # fmt: skip
    assert all(row.milliseconds > 0 for row in variant.report.speed)
    assert 0.0 < variant.report.parity.max_abs_diff < 1e-5
    assert 0.0 < variant.report.parity.batch_max_abs_diff < 1e-5
    assert variant.report.parity.min_cosine > 0.999999
    assert variant.report.parity.texts == len(sentences.load()) + 1
    assert manifest.provenance.architecture == "BertModel"
    assert list(minilm_repository.rglob(".*")) == []


def test_nothing_of_this_machine_is_in_the_manifest(minilm: Embedder, minilm_source: Path) -> None:
    text = (minilm.bundle.path / bundles.MANIFEST).read_text()
    assert minilm.bundle.manifest.provenance.source == minilm_source.name
    for secret in (str(minilm_source.parent), str(minilm.bundle.path.parent), str(Path.home())):
        assert secret not in text


def test_tokenizer_neither_cuts_nor_pads(minilm: Embedder) -> None:
    content = json.loads(minilm.bundle.file(minilm.bundle.manifest.tokenizer).read_text())
    assert content["truncation"] is None
    assert content["padding"] is None


def test_int8_limit(minilm: Embedder, alone: np.ndarray) -> None:
    limit = minilm.bundle.manifest.int8_limit
    assert limit == pytest.approx(np.abs(alone).max(), abs=0.02)
    assert limit >= np.abs(alone).max() - 1e-6


def test_vectors_of_every_length(minilm: Embedder, minilm_source: Path) -> None:
    words = " ".join(sentences.load()).split()
    texts = ["", *(" ".join(words[:count]) for count in (1, 2, 3, 5, 8, 13, 40, 90, 120, 150, 300, 512))]
    tokens = [len(minilm.tokenizer.encode(text).ids) for text in texts]
    assert tokens[0] == 2
    assert max(tokens) == 256
    wanted = tiny_encoders.encode(minilm_source, texts)
    np.testing.assert_allclose(minilm(texts), wanted, atol=1e-4, rtol=0)


def test_same_space_again_by_the_recipe(
    minilm: Embedder, minilm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    manifest = minilm.bundle.manifest
    words = shlex.split(manifest.provenance.recipe)
    assert words[:2] == ["trimtab", "export"]
    (tmp_path / manifest.provenance.source).symlink_to(minilm_source)
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    cli.configure(parser)
    assert cli.run(parser.parse_args(words[2:])) == 0
    again = bundles.read(tmp_path / "REPOSITORY" / "all-minilm-l6-v2" / "1").manifest
    assert again.space == manifest.space
    assert again.variants[0].files[0].sha256 == manifest.variants[0].files[0].sha256

    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert again.space in out
    steps = err.splitlines()
    assert [step[:5] for step in steps] == [f"[{number}/9]" for number in range(1, 10)]
    assert all(step.endswith(" s") for step in steps)


def test_info_for_people(minilm: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    info.configure(parser)
    assert info.run(parser.parse_args([str(minilm.bundle.path)])) == 0
    text = capsys.readouterr().out
    manifest = minilm.bundle.manifest
    for shown in (manifest.space, "384 dimensions", "256 tokens", "max |diff|", manifest.provenance.recipe):
        assert shown in text


def test_info_for_programs(minilm: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    info.configure(parser)
    assert info.run(parser.parse_args([str(minilm.bundle.path), "--json"])) == 0
    shown = msgspec.json.decode(capsys.readouterr().out, type=manifests.Manifest)
    assert shown == minilm.bundle.manifest


@settings(max_examples=25, deadline=None)
@given(
    order=st.lists(st.integers(0, len(sentences.load()) - 1), min_size=1, max_size=5),
    pads=st.integers(0, 40),
)
def test_neighbours_and_pads_change_nothing(
    minilm: Embedder, alone: np.ndarray, order: list[int], pads: int
) -> None:
    texts = sentences.load()
    together = minilm([texts[number] for number in order], extra_pads=pads)
    np.testing.assert_allclose(together, alone[order], atol=2e-6, rtol=0)
