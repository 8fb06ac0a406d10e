"""Thin layers: what they keep, which layers they are not for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch
from embedder import Embedder
from tiny_encoders import Export

from trimtab.artifacts import bundle as bundles
from trimtab.errors import ExportError
from trimtab_export import sentences
from trimtab_export.load import load
from trimtab_export.passes import anatomy
from trimtab_export.passes.low_rank import low_rank
from trimtab_export.passes.student import Student
from trimtab_export.source import Settings
from trimtab_export.steps import quiet
from trimtab_export.tokens import Collator

TEXTS = [text for text in sentences.load() if text.strip()]


def made(architecture: str, folder: Path) -> tuple[Student, list[Any]]:
    with quiet():
        source = load(Settings(str(tiny_encoders.sentence_transformers(architecture, folder))))
    collator = Collator(source.tokenizer, 60)
    batches = [collator(TEXTS[start : start + 16]) for start in range(0, len(TEXTS), 16)]
    return Student(source.backbone, source.head), batches


def vectors(student: Student, batches: list[Any]) -> Any:
    with torch.no_grad():
        return torch.cat([student(batch) for batch in batches]).numpy()


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_outputs_of_few_dimensions_are_kept_by_few(architecture: str, tmp_path: Path) -> None:
    whole, batches = made(architecture, tmp_path)
    with torch.no_grad():
        for block in anatomy.blocks(whole.backbone):
            for linear in (block.widen, block.narrow):
                left, _, right = torch.linalg.svd(linear.weight, full_matrices=False)
                linear.weight.copy_(left[:, :6] @ right[:6])  # rank 6, whatever it reads
    thin = whole.copy()
    ranks = low_rank(thin, batches, 0.999999)
    feed_forward = [rank for name, rank in ranks.thin.items() if rank == 8]
    assert len(feed_forward) >= 4, "a multiple of 8, and all of the feed-forward layers"
    np.testing.assert_allclose(vectors(thin, batches), vectors(whole, batches), atol=5e-3)
    before, after = (sum(weight.numel() for weight in each.backbone.parameters()) for each in (whole, thin))
    assert after < before


def test_the_axes_are_those_of_the_inputs_and_not_of_the_weights(tmp_path: Path) -> None:
    """A weight that is large where nothing is ever read takes no rank."""
    whole, batches = made("bert", tmp_path)
    block = anatomy.blocks(whole.backbone)[0]
    with torch.no_grad():
        block.widen.weight[:, 0] = 100.0
        norm = block.module.attention.output.LayerNorm
        norm.weight[0] = 0.0  # so that the input 0 is constant
    thin = whole.copy()
    low_rank(thin, batches, 0.9)
    assert (vectors(thin, batches) * vectors(whole, batches)).sum(axis=1).mean() > 0.95


def test_where_nothing_gets_cheaper_it_is_refused(tmp_path: Path) -> None:
    student, batches = made("bert", tmp_path)
    with pytest.raises(ExportError, match="low_rank = 1: no layer gets cheaper"):
        low_rank(student, batches, 1.0)


def test_a_thin_variant_in_int8(st_bert: Path, tmp_path: Path, export: Export) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[[variants]]\nname = 'thin'\nprecision = 'int8'\nlow_rank = 0.7\n")
    bundle = bundles.read(export(st_bert, "--recipe", str(recipe)))
    (thin,) = bundle.manifest.variants[1:]
    assert thin.unpadded
    assert thin.report.fidelity is not None
    assert thin.report.fidelity.batch_min_cosine > 0.99999
    assert Embedder(bundle.path)(["a text"]).shape == (1, bundle.manifest.dimensions)
