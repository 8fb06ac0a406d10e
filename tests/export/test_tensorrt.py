"""TensorRT up to the door of its builder: what is asked for, and what is said where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedder import Embedder
from tiny_encoders import Export

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import tensorrt
from trimtab.errors import ExportError, InvalidArgument
from trimtab_export import runtime
from trimtab_export.passes import to_tensorrt


@pytest.mark.parametrize("longest", [1, 16, 100, 256, 512, 8192])
def test_the_profiles_cover_every_length_once(longest: int) -> None:
    profiles = tensorrt.profiles(longest)
    lengths = [length for each in profiles for length in range(each.least[1], each.most[1] + 1)]
    assert lengths == list(range(1, longest + 1))
    for each in profiles:
        assert all(
            low <= typical <= high
            for low, typical, high in zip(each.least, each.typical, each.most, strict=True)
        )
        texts, tokens = each.most
        assert texts == 256 or (texts * tokens <= 16384 < (texts + 1) * tokens)
    with pytest.raises(InvalidArgument, match="max_tokens 0"):
        tensorrt.profiles(0)


def test_the_options_name_each_input_in_each_profile(tmp_path: Path) -> None:
    options = tensorrt.options(("input_ids", "attention_mask"), 20, "fp16", tmp_path, 1)
    assert options["trt_profile_min_shapes"] == (
        "input_ids:1x1,attention_mask:1x1,input_ids:1x17,attention_mask:1x17"
    )
    assert options["trt_profile_max_shapes"] == (
        "input_ids:256x16,attention_mask:256x16,input_ids:256x20,attention_mask:256x20"
    )
    assert (options["device_id"], options["trt_engine_cache_path"]) == ("1", str(tmp_path))
    assert options["trt_layer_norm_fp32_fallback"] == "1"
    reduced = [
        [tensorrt.options((), 8, precision, None)[f"trt_{kind}_enable"] for kind in ("fp16", "int8")]
        for precision in tensorrt.PRECISIONS
    ]
    assert reduced == [["0", "0"], ["1", "0"], ["0", "1"]], "an engine never moves vectors by itself"
    assert "trt_engine_cache_path" not in tensorrt.options((), 8, "fp32", None)


def test_where_there_is_none_the_step_says_so_and_the_bundle_serves(
    st_bert: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundles.read(export(st_bert, "--tensorrt"))
    assert "fp32: ONNX Runtime has no TensorRT here" in capsys.readouterr().err
    assert bundle.manifest.variants[0].engines == ()
    assert np.isfinite(Embedder(bundle.path)(["a text"])).all()
    with pytest.raises(ExportError, match="TensorRT does not know the operators of int8-weights"):
        to_tensorrt.check("int8-weights")


def test_engines_are_built_in_every_profile_and_stand_in_the_manifest(
    st_bert: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a provider that only writes what it was asked."""
    plain = runtime.session
    shapes: list[tuple[int, ...]] = []

    class Session:
        def __init__(self, settings: dict[str, str]) -> None:
            self.folder = Path(settings["trt_engine_cache_path"])

        def get_providers(self) -> list[str]:
            return [to_tensorrt.PROVIDER]

        def get_inputs(self) -> list[Any]:
            return []

        def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
            (self.folder / "graph_sm90.engine").write_bytes(b"engine")
            (self.folder / "cache_sm90.timing").write_bytes(b"timing")
            return [np.zeros((1, 1), np.float32)]

    def session(graph: Path, threads: int = 0, providers: Any = ("CPUExecutionProvider",)) -> Any:
        if providers[0] == "CPUExecutionProvider":
            return plain(graph, threads)
        return Session(providers[0][1])

    def run(running: Any, output: str, tokens: Any) -> Any:
        if isinstance(running, Session):
            shapes.append(tokens["input_ids"].shape)
            return running.run([output], {})[0]
        return ran(running, output, tokens)

    ran = runtime.run
    monkeypatch.setattr(runtime, "session", session)
    monkeypatch.setattr(runtime, "run", run)
    monkeypatch.setattr(runtime, "providers", lambda: [to_tensorrt.PROVIDER])
    bundle = bundles.read(export(st_bert, "--tensorrt"))
    first = bundle.manifest.variants[0]
    assert [file.path for file in first.engines] == [
        "fp32/tensorrt/cache_sm90.timing",
        "fp32/tensorrt/graph_sm90.engine",
    ]
    assert shapes == [each.typical for each in tensorrt.profiles(bundle.manifest.max_tokens)]
    (bundle.path / "fp32/tensorrt/graph_sm90.engine").write_bytes(b"edited")
    with pytest.raises(Exception, match="the file was changed"):
        bundles.read(bundle.path)
