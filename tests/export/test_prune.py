"""Pruning and repair, on an encoder small enough to compute by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch

from trimtab.errors import ExportError
from trimtab_export import sentences
from trimtab_export.load import load
from trimtab_export.passes import anatomy, bf16_linear, prune
from trimtab_export.passes.student import LayerByLayer, Student, watch
from trimtab_export.source import Settings
from trimtab_export.steps import quiet
from trimtab_export.tokens import Collator

TEXTS = [text for text in sentences.load() if text.strip()]


class Made:
    """An encoder of an architecture, ready to be cut."""

    def __init__(self, architecture: str, folder: Path, pooling: str = "mean") -> None:
        with quiet():
            source = load(
                Settings(str(tiny_encoders.sentence_transformers(architecture, folder, pooling=pooling)))
            )
        self.source = source
        self.collator = Collator(source.tokenizer, 60)
        self.student = Student(source.backbone, source.head)
        self.batches = [self.collator(TEXTS[start : start + 16]) for start in range(0, len(TEXTS), 16)]

    def vectors(self, student: Student) -> Any:
        with torch.no_grad():
            return torch.cat([student(batch) for batch in self.batches]).numpy()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made("bert", tmp_path)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max"])
def test_a_student_gives_the_vectors_of_its_source(pooling: str, tmp_path: Path) -> None:
    made = Made("bert", tmp_path, pooling)
    (output,) = made.source.outputs
    assert output.reference is not None
    wanted = output.reference(TEXTS[:16], "passage")["dense"].values
    with torch.no_grad():
        np.testing.assert_allclose(made.student(made.collator(TEXTS[:16])).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_neurons_that_do_nothing_go_first_and_are_not_missed(architecture: str, tmp_path: Path) -> None:
    made = Made(architecture, tmp_path)
    with torch.no_grad():
        for block in anatomy.blocks(made.student.backbone):
            block.narrow.weight[:, ::2] = 0
    cut = made.student.copy()
    prune.prune(cut, made.batches, made.batches, layers=None, heads=1.0, ffn=0.5)
    assert [block.narrow.in_features for block in anatomy.blocks(cut.backbone)] == [24, 24]
    np.testing.assert_allclose(made.vectors(cut), made.vectors(made.student), atol=1e-3)


def test_heads_that_do_nothing_go_first_and_are_not_missed(made: Made) -> None:
    with torch.no_grad():
        for block in anatomy.blocks(made.student.backbone):
            block.context.weight[:, 16:] = 0
    cut = made.student.copy()
    prune.prune(cut, made.batches, made.batches, layers=None, heads=0.5, ffn=1.0)
    assert [block.heads for block in anatomy.blocks(cut.backbone)] == [1, 1]
    np.testing.assert_allclose(made.vectors(cut), made.vectors(made.student), atol=1e-3)


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_layer_by_layer_a_student_computes_what_it_does_as_a_whole(architecture: str, tmp_path: Path) -> None:
    made = Made(architecture, tmp_path)
    blocks = anatomy.blocks(made.student.backbone)
    with torch.no_grad():
        forward = LayerByLayer(made.student, made.batches, blocks[0].module)
        for block in blocks:
            seen = list(forward.watch(block.module, [block.widen, block.narrow]))
            for batch, modules in zip(made.batches, seen, strict=True):
                whole = watch(made.student, batch, [block.widen, block.narrow])
                for one, other in zip(modules, whole, strict=True):
                    torch.testing.assert_close(one, other)
            forward.through(block.module)


def test_a_student_that_shares_its_weights_loses_layers_alone(made: Made) -> None:
    whole = made.vectors(made.student)
    shared = made.student.sharing()
    anatomy.keep_layers(shared.backbone, (1,))
    assert len(anatomy.blocks(made.student.backbone)) == 2
    np.testing.assert_array_equal(made.vectors(made.student), whole)
    mine, theirs = (next(each.backbone.parameters()) for each in (made.student, shared))
    assert mine is theirs


def test_the_repair_brings_vectors_nearer(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def distance() -> float:
        cut = made.student.copy()
        prune.prune(cut, made.batches, made.batches, layers=None, heads=0.5, ffn=0.5)
        return float(np.square(made.vectors(cut) - made.vectors(made.student)).mean())

    repaired = distance()
    monkeypatch.setattr(prune, "_repair", lambda *arguments: None)
    assert repaired < 0.8 * distance()


def test_the_layer_that_does_nothing_goes_first(made: Made) -> None:
    with torch.no_grad():
        block = anatomy.blocks(made.student.backbone)[0]
        for linear in (block.context, block.narrow):
            linear.weight.zero_()
            linear.bias.zero_()
    assert prune.rank_layers(made.student, [made.batches], 1) == [0]


def test_a_layer_that_one_kind_of_text_needs_goes_last(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first all kinds turn a little, without the second one kind turns far."""
    first = anatomy.blocks(made.student.backbone)[0].narrow.weight.clone()
    kinds = [made.batches[:1], made.batches[1:2], made.batches[2:]]

    def damage(cut: Student, batches: Any, wanted: Any) -> float:
        second_went = torch.equal(anatomy.blocks(cut.backbone)[0].narrow.weight, first)
        return (0.5 if batches is kinds[1] else 0.0) if second_went else 0.2

    monkeypatch.setattr(prune, "_damage", damage)
    assert prune.rank_layers(made.student, kinds, 1) == [0]


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_a_layer_takes_over_the_part_of_those_that_went_behind_it(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(architecture, tmp_path)
    wanted = made.vectors(made.student)

    def distance() -> float:
        cut = made.student.copy()
        prune.prune(cut, made.batches, made.batches, layers=(0,), heads=1.0, ffn=1.0)
        return float(np.square(made.vectors(cut) - wanted).mean())

    repaired = distance()
    monkeypatch.setattr(prune, "_repair", lambda *arguments: None)
    assert repaired < 0.8 * distance()


def test_an_unknown_architecture_is_refused_by_name(made: Made) -> None:
    made.source.backbone.config.model_type = "mamba"
    with pytest.raises(ExportError, match="do not know the architecture mamba; they know bert"):
        prune.prune(made.student, made.batches, made.batches, layers=None, heads=1.0, ffn=0.5)


@pytest.mark.parametrize("inputs_trained", [True, False])
def test_products_of_bfloat16_are_near_those_of_float32(
    inputs_trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(24, 40), torch.randn(3, 5, 24, requires_grad=inputs_trained)

    def gradients() -> list[torch.Tensor]:
        layer.zero_grad()
        inputs.grad = None
        with bf16_linear.where_faster():
            outputs = layer(inputs)
        assert outputs.dtype == torch.float32
        outputs.square().sum().backward()
        found = [outputs, layer.weight.grad, layer.bias.grad, inputs.grad]
        return [each.detach().clone() for each in found if each is not None]

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    exact = gradients()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    fast = gradients()
    assert len(exact) == len(fast) == 3 + inputs_trained
    for one, other in zip(exact, fast, strict=True):
        assert one.shape == other.shape
        assert not torch.equal(one, other)
        assert float((one - other).norm() / one.norm()) < 0.01


def test_what_lies_behind_the_watched_layers_is_not_computed(made: Made) -> None:
    blocks = anatomy.blocks(made.student.backbone)
    ran: list[int] = []
    for number, block in enumerate(blocks):
        block.narrow.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        ((inputs, outputs),) = watch(made.student, made.batches[0], [blocks[0].narrow])
    assert len(inputs) == len(outputs) == made.batches[0]["attention_mask"].sum()
    assert ran == [0]
