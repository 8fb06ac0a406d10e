"""SHRP: heads that a router needed stay, with one feed-forward block behind them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_encoders
import torch
from tiny_encoders import Export

from trimtab.artifacts import bundle as bundles
from trimtab.errors import ExportError
from trimtab_export import sentences
from trimtab_export.load import load
from trimtab_export.passes import anatomy, heal, shrp
from trimtab_export.passes.student import Student
from trimtab_export.source import Settings
from trimtab_export.steps import quiet
from trimtab_export.tokens import Collator
from trimtab_export.variants import fidelity, make, mix

TEXTS = [text for text in sentences.load() if text.strip()]
ARCHITECTURES = [name for name in tiny_encoders.ARCHITECTURES if name != "mpnet"]
RECIPE = "[[variants]]\nname = 'experts'\nshrp = 0.5\nheal = 0.004\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix, "CHUNK", 64)
    monkeypatch.setattr(mix, "BATCH_TOKENS", 512)
    monkeypatch.setattr(fidelity, "SHAPES", ((1, 8),))
    monkeypatch.setattr(fidelity, "ROUNDS", 1)


def made(architecture: str, folder: Path) -> tuple[Student, list[Any]]:
    with quiet():
        source = load(Settings(str(tiny_encoders.sentence_transformers(architecture, folder))))
    collator = Collator(source.tokenizer, 60)
    batches = [collator(TEXTS[start : start + 16]) for start in range(0, len(TEXTS), 16)]
    return Student(source.backbone, source.head), batches


def projection(expert: Any) -> Any:
    return getattr(expert.attention, "query", None) or expert.attention.q_lin


def vectors(student: Student, batches: list[Any]) -> Any:
    with torch.no_grad():
        return torch.cat([student(batch) for batch in batches]).numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_brings_the_experts_nearer_and_the_used_heads_stay(
    architecture: str, tmp_path: Path
) -> None:
    whole, batches = made(architecture, tmp_path)
    wanted = vectors(whole, batches)
    student = whole.copy()
    shrp.replace(student, batches)

    def nearness() -> float:
        return float((vectors(student, batches) * wanted).sum(axis=1).mean())

    before = nearness()
    lesson = heal.Lesson(whole, lambda chunk: batches, [1, 2], 8000)
    heal.heal(student, lesson, tmp_path / "routing", lambda text: None)
    assert nearness() > before
    used = shrp.usage(student, batches)
    assert [round(sum(shares), 5) for shares in used] == [1.0, 1.0]
    queries = [projection(expert).weight.detach().clone() for expert in anatomy.stack(student.backbone)]
    assert shrp.prune(student, whole, batches, 0.5) == [1, 1]
    for expert, shares, query in zip(anatomy.stack(student.backbone), used, queries, strict=True):
        head = shares.index(max(shares))
        assert torch.equal(projection(expert).weight, query[head * 16 : (head + 1) * 16])
        assert expert.router is None
    heal.heal(student, lesson, tmp_path / "healing", lambda text: None)
    assert nearness() > 0.9


def test_a_token_goes_through_one_head_while_there_is_a_router(tmp_path: Path) -> None:
    student, batches = made("bert", tmp_path)
    shrp.replace(student, batches)
    expert = anatomy.stack(student.backbone)[0]
    seen: list[torch.Tensor] = []
    expert.up.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].detach()))
    vectors(student, batches[:1])
    heads = seen[0].unflatten(-1, (2, 16)).abs().sum(-1) > 1e-5
    assert bool((heads.sum(-1) == 1).all())
    student(batches[0]).sum().backward()  # type: ignore[no-untyped-call]
    assert float(expert.router.weight.grad.abs().max()) > 0, "straight through to the router"


def test_a_router_that_prefers_a_head_keeps_it(tmp_path: Path) -> None:
    whole, batches = made("bert", tmp_path)
    student = whole.copy()
    shrp.replace(student, batches)
    for expert, head in zip(anatomy.stack(student.backbone), (1, 0), strict=True):
        with torch.no_grad():
            expert.router.bias[head] = 100.0
    assert shrp.usage(student, batches) == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bundle_has_a_plain_graph_of_it(architecture: str, tmp_path: Path, export: Export) -> None:
    source = tiny_encoders.sentence_transformers(architecture, tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE + RECIPE.replace("experts", "bytes") + "precision = 'int8'\n")
    bundle = bundles.read(export(source, "--recipe", str(recipe)))
    for variant in bundle.manifest.variants[1:]:
        figures = variant.report.fidelity
        assert variant.unpadded
        assert figures is not None
        assert figures.batch_min_cosine > 0.99999
        graph = onnx.load(str(bundle.file(variant.files[0])), load_external_data=False).graph
        operators = {node.op_type for node in graph.node}
        assert not operators & {"ArgMax", "OneHot", "TopK", "ScatterElements"}, "no router is left"


def test_an_interrupted_training_goes_on(
    st_bert: Path, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    straight = bundles.read(export(st_bert, "--recipe", str(recipe), name="straight"))
    monkeypatch.setattr(heal, "SAVE_SECONDS", -1.0)
    graph_of = make._graph

    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "_graph", stop)
    with pytest.raises(KeyboardInterrupt):
        export(st_bert, "--recipe", str(recipe))
    monkeypatch.setattr(make, "_graph", graph_of)
    monkeypatch.setattr(heal, "_step", stop)  # all steps were done
    again = bundles.read(export(st_bert, "--recipe", str(recipe)))
    spaces = [each.manifest.variants[1].moved for each in (straight, again)]
    assert spaces[0] == spaces[1]


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("shrp = 0.5", "shrp = 0.5 puts new blocks after the heads.*give heal = 1"),
        ("shrp = 0.5\nffn = 0.5\nheal = 0.004", "shrp = 0.5 chooses the heads itself.*leave ffn out"),
        ("shrp = 0.5\nheads = 0.5\nlow_rank = 0.9\nheal = 0.004", "leave heads and low_rank out"),
        (
            "shrp = 0.5\nexit = 1\nheal = 0.004",
            "exit and width .* not with layers, heads, ffn, shrp or low_rank",
        ),
    ],
)
def test_what_contradicts_it_is_refused(
    passes: str, message: str, st_bert: Path, refused: Callable[[Path, str, str], None]
) -> None:
    refused(st_bert, passes, message)


def test_mpnet_is_refused_by_name(tmp_path: Path, export: Export) -> None:
    source = tiny_encoders.sentence_transformers("mpnet", tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    with pytest.raises(ExportError, match=r"mpnet adds one position bias .* leave heads and shrp out"):
        export(source, "--recipe", str(tmp_path / "recipe.toml"))
