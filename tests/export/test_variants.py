"""Variants in a bundle: spaces of their own with figures, made by a recipe or found by a search."""

import errno
import json
import os
import signal
import threading
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
from trimtab.artifacts import manifest as manifests
from trimtab.artifacts.manifest import Passes
from trimtab.cli import main as cli_main
from trimtab.errors import ExportError
from trimtab_export.graph.head import save
from trimtab_export.passes import quantize
from trimtab_export.variants import fidelity, mix, recipe, search

BRIEF = ("--heal-minutes", "0.01")
RECIPE = """
[[variants]]
name = "int8"
precision = "int8"

[[variants]]
name = "small"
precision = "int8"
layers = [1]
ffn = 0.5
heal = 0.004

[[variants]]
name = "small-fp32"
layers = [1]
ffn = 0.5
heal = 0.004
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little as a tiny encoder needs; and speed is no matter of tests."""
    monkeypatch.setattr(mix, "CHUNK", 64)
    monkeypatch.setattr(mix, "BATCH_TOKENS", 512)
    monkeypatch.setattr(fidelity, "SHAPES", ((1, 8), (4, 8)))
    monkeypatch.setattr(fidelity, "ROUNDS", 1)


def run(bundle: bundles.Bundle, variant: manifests.BundleVariant, texts: list[str]) -> Any:
    embed = Embedder(bundle.path)
    embed.session = onnxruntime.InferenceSession(
        str(bundle.file(variant.files[0])), providers=["CPUExecutionProvider"]
    )
    return embed(texts)


def test_a_recipe_and_the_same_bundle_again_from_what_it_prints(
    st_bert: Path, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    folder = export(st_bert, "--recipe", str(tmp_path / "recipe.toml"))
    out = capsys.readouterr().out
    assert sorted(path.name for path in folder.parent.iterdir()) == ["1", "1.report"]
    page = (folder.parent / "1.report" / "report.html").read_text("utf-8")
    assert all(name in page for name in ("small-fp32", "judge 1", "left out", "data:image/png;base64,"))
    assert (folder.parent / "1.report" / "quality-speed.png").read_bytes()[:4] == b"\x89PNG"
    bundle = bundles.read(folder)
    first, *rest = bundle.manifest.variants
    assert [variant.name for variant in rest] == ["int8", "small", "small-fp32"]
    assert not first.moved
    spaces = [each.space for variant in rest for each in variant.moved]
    assert len({bundle.manifest.space, *spaces}) == 4
    texts = ["a few words", "of text"]
    for variant in rest:
        figures = variant.report.fidelity
        assert figures is not None
        assert (figures.queries, figures.documents, figures.retrieval) == (40, 60, "judge 1")
        assert [(each.name, each.kind) for each in figures.sets] == [("judge 1", "left out")]
        assert figures.ndcg == figures.sets[0].ndcg
        assert not figures.provisional
        assert figures.batch_min_cosine >= 0.99999
        assert figures.bytes == sum(file.size for file in variant.files)
        assert variant.unpadded
        vectors = run(bundle, variant, texts)
        assert vectors.shape == (2, bundle.manifest.dimensions)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert not np.allclose(vectors, run(bundle, first, texts), atol=1e-4)
    int8, small, plain = rest
    assert small.passes == Passes(name="small", precision="int8", layers=(1,), ffn=0.5, heal=0.004)
    assert int8.files[1].size > small.files[1].size
    assert plain.precision == "fp32"

    assert cli_main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert small.moved[0].space in shown
    assert "of judge 1 en: 40 queries, 60 documents" in shown
    assert "provisional" not in shown

    (tmp_path / "again.toml").write_text(out.split("again:\n\n")[1])
    assert recipe.load(tmp_path / "again.toml") == tuple(variant.passes for variant in rest)
    again = bundles.read(export(st_bert, "--recipe", str(tmp_path / "again.toml"), name="again"))
    assert [each.moved for each in again.manifest.variants] == [
        each.moved for each in bundle.manifest.variants
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[variants]]\nprecision = 'int8'", "missing required field `name`"),
        ("[[variants]]\nname = 'x'\nlayer = 3", "unknown field `layer`"),
        ("[[variants]]\nname = 'x'\nprecision = 'int3'", "int3"),
        ("[[variants]]\nname = 'fp32'", "'fp32' cannot name a variant"),
        ("[[variants]]\nname = '../x'", "cannot name a variant"),
        ("[[variants]]\nname = 'x'\n[[variants]]\nname = 'x'", "two variants are called 'x'"),
        ("variants = 3", "variants"),
        ("[[variants]]\nname = 'x'\nffn = 0.0", r"> 0.0 - at `\$.variants\[0\].ffn`"),
        ("[[variants]]\nname = 'x'\nheads = 1.5", r"<= 1.0 - at `\$.variants\[0\].heads`"),
        ("[[variants]]\nname = 'x'\nshrp = -1.0", r"> 0.0 - at `\$.variants\[0\].shrp`"),
        ("[[variants]]\nname = 'x'\nlow_rank = 2.0", r"<= 1.0 - at `\$.variants\[0\].low_rank`"),
        ("[[", "cannot be read"),
    ],
)
def test_a_recipe_that_cannot_be_followed(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ExportError, match=message):
        recipe.load(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("layers = [1, 0]", "give ascending numbers of the encoder's layers, 0 to 1"),
        ("layers = [2]", "0 to 1"),
        ("layers = []", "0 to 1"),
        ("", "would be the encoder as it is"),
    ],
)
def test_a_pass_that_makes_no_sense(
    passes: str, message: str, st_bert: Path, refused: Callable[[Path, str, str], None]
) -> None:
    refused(st_bert, passes, message)


def test_an_onnx_source_is_quantised_but_not_cut(tiny_bundle: Path, tmp_path: Path, export: Export) -> None:
    import shutil

    graph = tmp_path / "graph"
    shutil.copytree(tiny_bundle / "fp32", graph)
    shutil.copy(tiny_bundle / "tokenizer.json", graph)
    (graph / "config.json").write_text(json.dumps({"pad_token_id": 0, "max_position_embeddings": 130}))
    (graph / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    (tmp_path / "recipe.toml").write_text("[[variants]]\nname = 'cut'\nffn = 0.5\n")
    with pytest.raises(
        ExportError, match="the variant cut: pruning, healing and exits work on torch weights"
    ):
        export(graph, "--recipe", str(tmp_path / "recipe.toml"))
    bundle = bundles.read(export(graph, "--min-quality", "0.5", name="graph"))
    assert {variant.name for variant in bundle.manifest.variants} <= {"fp32", "int8", "bf16", "int8-weights"}
    assert len(bundle.manifest.variants) > 1


def test_a_search_keeps_its_floor_beside_a_recipe(
    st_bert: Path, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text("[[variants]]\nname = 'narrow'\nwidth = 4\n")
    options = ("--min-quality", "0.6", "--min-quality", "0.95", "--target", "size", *BRIEF)
    bundle = bundles.read(export(st_bert, *options, "--recipe", str(tmp_path / "recipe.toml")))
    _, narrow, *found = bundle.manifest.variants
    assert (narrow.name, narrow.moved[0].dimensions) == ("narrow", 4)
    assert found
    for variant in (narrow, *found):
        packed = variant.report.fidelity and variant.report.fidelity.packed
        assert packed is not None
        assert variant.moved[0].int8_limit == packed.int8_limit
        assert packed.int8_ndcg > 0
    limits = narrow.moved[0].int8_limit, bundle.manifest.int8_limit
    assert limits[0] is not None and limits[1] is not None
    assert limits[0] > limits[1], "4 components of a unit vector are larger than 32"
    for variant in found:
        assert variant.report.fidelity is not None
        assert variant.report.fidelity.ndcg.value >= 0.6
    sizes = [sum(file.size for file in variant.files) for variant in found]
    assert sizes == sorted(sizes), "the best for the target first"
    assert "finding the layers that matter least" in capsys.readouterr().err


def test_one_kind_of_text_gives_a_provisional_card(
    st_bert: Path, tmp_path: Path, export: Export, texts: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    texts("train")
    (tmp_path / "recipe.toml").write_text("[[variants]]\nname = 'int8'\nprecision = 'int8'\n")
    folder = export(st_bert, "--recipe", str(tmp_path / "recipe.toml"))
    figures = bundles.read(folder).manifest.variants[1].report.fidelity
    assert figures is not None and figures.provisional
    assert [each.kind for each in figures.sets] == ["trained on"]
    capsys.readouterr()
    assert cli_main(["info", str(folder)]) == 0
    assert "provisional: judged by the kind of text that it was made on" in capsys.readouterr().out
    page = (folder.parent / "1.report" / "report.html").read_text("utf-8")
    assert "provisional: judged by the kind of text" in page


def test_the_users_own_pairs_are_told_apart(st_bert: Path, tmp_path: Path, export: Export) -> None:
    rows = [
        {"query": f"who did w{n}", "document": f"w{n} was done by x{n}, y{n % 7} says"} for n in range(90)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bundle = bundles.read(
        export(st_bert, "--min-quality", "0.5", *BRIEF, "--pairs", str(tmp_path / "own.jsonl"))
    )
    for variant in bundle.manifest.variants[1:]:
        figures = variant.report.fidelity
        assert figures is not None
        assert [(each.name, each.kind) for each in figures.sets] == [
            ("own.jsonl", "yours"), ("judge 1", "left out"),
        ]  # fmt: skip
        assert figures.ndcg.value == min(each.ndcg.value for each in figures.sets) >= 0.5
        assert figures.compared > 1


def test_a_floor_that_cannot_be_kept_says_what_can(st_bert: Path, tmp_path: Path, export: Export) -> None:
    with pytest.raises(ExportError, match=r"no variant .* keeps --min-quality 1 .* the nearest is .* nDCG"):
        worse = search.keeps
        try:
            search.keeps = lambda candidate, floor: False
            export(st_bert, "--min-quality", "1", *BRIEF)
        finally:
            search.keeps = worse
    assert not (tmp_path / "repository" / "tiny" / "1").exists()
    assert list((tmp_path / "repository" / "tiny").iterdir()) == [
        tmp_path / "repository" / "tiny" / ".1.search"
    ]


def test_an_interrupted_search_goes_on(
    st_bert: Path, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    measure = fidelity.measure
    done = []

    def interrupted(*arguments: Any) -> Any:
        if len(done) == 1:
            signal.raise_signal(signal.SIGTERM)
        done.append(threading.get_ident())
        return measure(*arguments)

    monkeypatch.setattr(fidelity, "measure", interrupted)
    with pytest.raises(SystemExit):
        export(st_bert, "--min-quality", "0.6", *BRIEF)
    monkeypatch.setattr(fidelity, "measure", measure)
    assert "int8: nDCG" in capsys.readouterr().err
    export(st_bert, "--min-quality", "0.6", *BRIEF)
    err = capsys.readouterr().err
    assert "-int8: making it" in err, "a cut"
    assert "\n  int8: making it" not in err
    assert "int8-weights" not in err, "it would be slower, and int8 keeps the floor"


def test_a_full_disk_ends_without_a_traceback_and_without_a_bundle(
    st_bert: Path, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights.bin")

    monkeypatch.setattr(quantize, "save", full)
    with pytest.raises(ExportError, match=r"No space left on device: weights\.bin\. No bundle was written"):
        export(st_bert, "--min-quality", "0.6", *BRIEF)
    assert not (tmp_path / "repository" / "tiny" / "1").exists()


def test_weights_that_are_nan_are_named(bert: Path, tmp_path: Path, export: Export) -> None:
    import transformers

    model = transformers.BertModel.from_pretrained(bert)
    model.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "nan")
    with pytest.raises(
        ExportError, match=r"encoder\.layer\.1\.output\.dense\.weight of the source holds NaN"
    ):
        export(tmp_path / "nan", "--pooling", "cls")


def test_a_variant_that_depends_on_its_batch_is_refused(
    st_bert: Path, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales taken from each batch, as dynamic quantisation does, are the usual reason."""
    to_int8 = quantize.to_int8

    def dynamic(graph: Path, batches: Any, folder: Path) -> tuple[Path, ...]:
        files = to_int8(graph, batches, folder)
        model = onnx.load(str(files[0]))
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear":
                scale, zero = (f"{node.output[0]}/of-the-batch/{what}" for what in ("scale", "zero"))
                for user in model.graph.node:
                    if user.op_type == "MatMulIntegerToFloat" and user.input[0] == node.output[0]:
                        user.input[2], user.input[4] = scale, zero
                node.op_type = "DynamicQuantizeLinear"
                del node.input[1:], node.attribute[:]
                node.output.extend([scale, zero])
        return save(model, files[0])

    monkeypatch.setattr(quantize, "to_int8", dynamic)
    (tmp_path / "recipe.toml").write_text("[[variants]]\nname = 'dynamic'\nprecision = 'int8'\n")
    with pytest.raises(ExportError, match="the variant dynamic: a text's vector changes with its neighbours"):
        export(st_bert, "--recipe", str(tmp_path / "recipe.toml"))


def test_options_that_contradict_each_other(st_bert: Path, tmp_path: Path, export: Export) -> None:
    for options in (
        ["--min-quality", "1.5"],
        ["--min-quality", "x"],
        ["--heal-minutes", "0"],
        ["--heal-minutes", "inf"],
        ["--heal-minutes", "long"],
    ):
        with pytest.raises(SystemExit):
            export(st_bert, *options)


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_every_architecture_goes_through_every_pass(
    architecture: str, tmp_path: Path, export: Export
) -> None:
    source = tiny_encoders.sentence_transformers(architecture, tmp_path)
    text = "[[variants]]\nname = 'cut'\nprecision = 'int8'\nlayers = [0]\nheads = 0.5\nffn = 0.5\n"
    text += "heal = 0.004\n"
    (tmp_path / "recipe.toml").write_text(text)
    options = ("--recipe", str(tmp_path / "recipe.toml"))
    if architecture == "mpnet":
        with pytest.raises(ExportError, match="mpnet adds one position bias to the heads of all its layers"):
            export(source, *options)
        (tmp_path / "recipe.toml").write_text(text.replace("heads = 0.5\n", ""))
    bundle = bundles.read(export(source, *options))
    (cut,) = bundle.manifest.variants[1:]
    assert cut.report.fidelity is not None
    assert cut.report.fidelity.batch_min_cosine > 0.99999
    assert cut.unpadded
