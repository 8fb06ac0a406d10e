"""Variants for OpenVINO: made by a recipe, measured in it, served by it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_encoders import Export

import trimtab
from tests.server.server_process import serve
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import cards, openvino, variants
from trimtab.artifacts.manifest import Passes
from trimtab.cli import main as cli_main
from trimtab.errors import ExportError
from trimtab_export import runtime
from trimtab_export.adapters.encode import BundleEncoder
from trimtab_export.passes import half
from trimtab_export.variants import fidelity, mix, recipe

TEXTS = ["a few words", "of text", "w1 x2 y3"]
RECIPE = """
[[variants]]
name = "bf16"
precision = "bf16"
runner = "openvino"

[[variants]]
name = "small"
precision = "bf16"
runner = "openvino"
layers = [1]
heal = 0.004
"""
with_products = pytest.mark.skipif(
    not openvino.multiplies_bf16(openvino.core()), reason="this processor has no products in bfloat16"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix, "CHUNK", 64)
    monkeypatch.setattr(mix, "BATCH_TOKENS", 512)
    monkeypatch.setattr(fidelity, "SHAPES", ((1, 8), (4, 8)))
    monkeypatch.setattr(fidelity, "ROUNDS", 1)


@with_products
def test_made_measured_and_served(
    st_bert: Path, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    folder = export(st_bert, "--recipe", str(tmp_path / "recipe.toml"))
    out = capsys.readouterr().out
    bundle = bundles.read(folder)
    first, whole, small = bundle.manifest.variants
    assert [each.runner for each in (first, whole, small)] == ["onnx", "openvino", "openvino"]
    assert whole.files == first.files, "the same weights take no more room"
    assert {file.path.split("/")[0] for file in small.files} == {"small"}
    assert len({each.moved[0].space for each in (whole, small)} | {bundle.manifest.space}) == 3
    for variant in (whole, small):
        figures = variant.report.fidelity
        assert figures is not None and figures.batch_min_cosine >= 0.99999
        assert "OpenVINO" in variant.report.machine and variant.unpadded
    assert whole.report.fidelity and 0.9999 < whole.report.fidelity.min_cosine < 1
    assert whole.passes == Passes(name="bf16", precision="bf16", runner="openvino")

    (tmp_path / "again.toml").write_text(out.split("again:\n\n")[1])
    assert recipe.load(tmp_path / "again.toml") == (whole.passes, small.passes)
    assert cli_main(["info", str(folder)]) == 0
    assert "variant bf16: bf16 in OpenVINO, padding" in capsys.readouterr().out

    config = '[encoders.tiny]\nvariants = ["bf16", "small"]\n'
    with serve(folder.parents[1], tmp_path, config) as server, trimtab.Client(server.url) as client:
        for name in ("bf16", "small"):
            found = client.embed_detailed(TEXTS, variant=name)
            of_variant = variants.read(f"{folder}:{name}")
            assert found.space == of_variant.manifest.space
            expected = BundleEncoder(of_variant, threads=1).compute(TEXTS, "")
            np.testing.assert_allclose(found.vectors, expected, atol=1e-6)
        exact = client.embed(TEXTS)
        cosines = (exact * client.embed(TEXTS, variant="bf16")).sum(1)
        assert cosines.min() > 0.9999 and not np.array_equal(exact, found.vectors)


@with_products
def test_a_search_finds_it(
    st_bert: Path, export: Export, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is faster, which a tiny encoder is not."""
    measured = fidelity.speedup

    def speedup(graph: runtime.AnyGraph, *rest: Any) -> tuple[cards.Speedup, ...]:
        factor = 3.0 if isinstance(graph, runtime.OpenVinoGraph) else 2.0
        return tuple(msgspec.structs.replace(each, factor=factor) for each in measured(graph, *rest))

    monkeypatch.setattr(fidelity, "speedup", speedup)
    folder = export(st_bert, "--min-quality", "0.95", "--heal-minutes", "0.01")
    assert "bf16: nDCG" in capsys.readouterr().err
    _, *found = bundles.read(folder).manifest.variants
    assert found and found[0].runner == "openvino", "the fastest comes first"


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weights", "int8-qdq", "fp16"])
def test_other_precisions_are_for_onnx_runtime(
    precision: str, st_bert: Path, refused: Callable[[Path, str, str], None]
) -> None:
    asked = f'precision = "{precision}"\nrunner = "openvino"\nlayers = [1]'
    refused(st_bert, asked, f"OpenVINO runs variants in bf16, and odd is in {precision}")


def test_without_openvino_the_extra_is_named(
    st_bert: Path, refused: Callable[[Path, str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino.core.cache_clear()
    asked = 'precision = "bf16"\nrunner = "openvino"'
    refused(st_bert, asked, r"OpenVINO is not installed: pip install 'trimtab\[openvino\]'")


def test_without_products_there_is_nothing_to_measure(
    st_bert: Path, refused: Callable[[Path, str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "multiplies_bf16", lambda opened: False)
    refused(st_bert, 'precision = "bf16"\nrunner = "openvino"', "this processor has no products in bfloat16")


@with_products
@pytest.mark.parametrize(("operator", "domain"), [("Loop", ""), ("Gelu", "com.microsoft")])
def test_operators_that_it_is_not_given(tmp_path: Path, operator: str, domain: str) -> None:
    """However deep they are."""
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    branch = helper.make_graph([helper.make_node(operator, ["x"], ["y"], domain=domain)], "b", [], [])
    node = helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch)
    onnx.save(helper.make_model(helper.make_graph([node], "g", [shape], [])), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=f"OpenVINO is not given the operator {operator} of"):
        half.to_openvino(tmp_path / "model.onnx", tmp_path / "made")


def test_a_graph_that_it_cannot_read(tmp_path: Path) -> None:
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(ExportError, match=r"OpenVINO cannot load model\.onnx"):
        runtime.session(runtime.graph(tmp_path / "model.onnx", "openvino", "bf16"))
