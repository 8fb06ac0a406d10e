"""Exits: the encoder left early, and narrower, with heads that are fitted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_encoders
from embedder import Embedder
from tiny_encoders import Export

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.artifact import File
from trimtab.cli import main as cli_main
from trimtab_export.passes import exits
from trimtab_export.variants import cells, fidelity, mix

TEXTS = [f"w{number} some words x{number * 7 % 13}" for number in range(20)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix, "CHUNK", 64)
    monkeypatch.setattr(mix, "BATCH_TOKENS", 512)
    monkeypatch.setattr(fidelity, "SHAPES", ((1, 8),))
    monkeypatch.setattr(fidelity, "ROUNDS", 1)


def vectors(bundle: bundles.Bundle, file: File) -> Any:
    embed = Embedder(bundle.path)
    embed.session = onnxruntime.InferenceSession(str(bundle.file(file)), providers=["CPUExecutionProvider"])
    return embed(TEXTS)


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_depth_and_width(
    st_bert: Path, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "WHITENING", 0.0)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "[[variants]]\nname = 'narrow'\nwidth = 8\n"
        "[[variants]]\nname = 'early'\nexit = 1\n"
        "[[variants]]\nname = 'both'\nexit = 1\nwidth = 8\nprecision = 'int8'\n"
    )
    bundle = bundles.read(export(st_bert, "--recipe", str(recipe)))
    first, narrow, early, both = bundle.manifest.variants
    assert [[each.dimensions for each in variant.moved] for variant in (first, narrow, early, both)] == [
        [],
        [8],
        [None],
        [8],
    ]
    whole = vectors(bundle, first.files[0])
    small = vectors(bundle, narrow.files[0])
    assert small.shape == (len(TEXTS), 8)
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, atol=1e-5)
    # Principal axes: no other 8 dimensions keep more of the similarities than their sum of squares tells.
    cut = unit(whole[:, :8])
    error = lambda rows: np.square(rows @ rows.T - whole @ whole.T).mean()  # noqa: E731
    assert error(small) < error(cut)

    got = vectors(bundle, early.files[0])
    assert got.shape == whole.shape
    # Training the tiny tokenizer breaks ties at random, so the figure differs from run to run.
    assert (got * whole).sum(axis=1).mean() > 0.5, "its head was fitted to the whole encoder"
    norms = lambda variant: sum(  # noqa: E731
        node.op_type == "LayerNormalization"
        for node in onnx.load(str(bundle.file(variant.files[0])), load_external_data=False).graph.node
    )
    assert (norms(first), norms(early), norms(both)) == (5, 3, 3), "what comes after the exit is gone"
    assert vectors(bundle, both.files[0]).shape == (len(TEXTS), 8)
    assert both.files[1].size < early.files[1].size < first.files[1].size


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("exit = 2", "exit = 2: give 1 to 1, of the encoder's 2 layers"),
        ("exit = 0", "exit = 0: give 1 to 1"),
        ("width = 32", "width = 32: give less than the encoder's 32 dimensions"),
        ("width = 8\nffn = 0.5", "they go with a precision, not with layers"),
        ("width = 8\nheal = 0.004", "a width has nothing to heal"),
    ],
)
def test_cells_that_there_are_not(
    passes: str, message: str, st_bert: Path, refused: Callable[[Path, str, str], None]
) -> None:
    refused(st_bert, passes, message)


def test_every_depth_and_width_is_measured(
    st_bert: Path, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(cells, "WIDTHS", (16, 8))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "[[variants]]\nname = 'early'\nexit = 1\n[[variants]]\nname = 'narrow'\nexit = 1\nwidth = 8\n"
        "[[variants]]\nname = 'healed'\nexit = 1\nheal = 0.004\n"
        "[[variants]]\nname = 'healed-narrow'\nexit = 1\nheal = 0.004\nwidth = 8\n"
    )
    bundle = bundles.read(export(st_bert, "--recipe", str(recipe)))
    first, early, narrow, healed, healed_narrow = bundle.manifest.variants
    found = {(cell.layers, cell.dimensions): cell for cell in first.report.cells}
    assert sorted(found) == [(depth, width) for depth in (1, 2) for width in (8, 16, 32)]
    assert (found[2, 32].ndcg, found[2, 32].query_only_ndcg) == (1.0, 1.0)
    # The graphs of the variants give what was measured without them.
    for variant, cell in ((early, found[1, 32]), (narrow, found[1, 8])):
        kept = variant.report.fidelity
        assert kept is not None
        assert kept.ndcg.value == pytest.approx(cell.ndcg, abs=0.01)
        assert kept.query_only_ndcg.value == pytest.approx(cell.query_only_ndcg, abs=0.01)
    page = (bundle.path.with_suffix(".report") / "report.html").read_text()
    assert f"<td>{found[1, 16].ndcg:.3f} / {found[1, 16].query_only_ndcg:.3f}</td>" in page
    capsys.readouterr()
    assert cli_main(["info", str(bundle.path)]) == 0
    assert f"8: {found[1, 8].ndcg:.3f} / " in capsys.readouterr().out

    assert healed.report.fidelity is not None
    assert healed.report.fidelity.cosine > 0.9, "training goes on from the fitted head"
    assert healed.moved != early.moved
    assert vectors(bundle, healed_narrow.files[0]).shape == (len(TEXTS), 8)


@pytest.mark.parametrize("architecture", ["roberta", "mpnet", "distilbert"])
def test_every_architecture_has_exits_that_heal(architecture: str, tmp_path: Path, export: Export) -> None:
    (tmp_path / "recipe.toml").write_text(
        "[[variants]]\nname = 'healed'\nexit = 1\nheal = 0.004\nwidth = 8\nprecision = 'int8'\n"
    )
    source = tiny_encoders.sentence_transformers(architecture, tmp_path)
    bundle = bundles.read(export(source, "--recipe", str(tmp_path / "recipe.toml")))
    assert vectors(bundle, bundle.manifest.variants[1].files[0]).shape == (len(TEXTS), 8)


def test_a_linear_map_is_found() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(3, 5, (400, 12)).astype(np.float32)
    wanted = (states @ rng.normal(size=(12, 4)) + [1, 2, 3, 4]).astype(np.float32)
    weight, bias = exits.fit(states, wanted)
    assert (weight.shape, bias.shape) == ((4, 12), (4,))
    np.testing.assert_allclose(states @ weight.T + bias, wanted, rtol=0.02, atol=0.2)


def test_the_axes_are_orthonormal_and_the_strongest_first() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32) * [9, 5, 3, 1, 0.1, 0.1]
    axes = exits.basis(rows.astype(np.float32), 3)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    longer = exits.basis(rows.astype(np.float32), 3, 0.5)
    np.testing.assert_allclose(longer[:, 0], axes[:, 0], atol=1e-5)
    whitened = np.square(rows @ longer).sum(axis=0)
    np.testing.assert_allclose(whitened, whitened[0], rtol=1e-4)
    strengths = np.square(rows @ axes).sum(axis=0)
    assert list(strengths) == sorted(strengths, reverse=True)
