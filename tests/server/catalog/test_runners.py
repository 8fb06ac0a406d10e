"""A variant for OpenVINO, served by a real server; and bundles that name runners which cannot be had."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import trimtab
from tests.server import openvino_made
from tests.server.engine.test_isolation import child_of
from tests.server.server_process import NAME, ServerProcess, serve
from tests.texts import TEXTS
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import variants
from trimtab.artifacts.bundle import Bundle
from trimtab.errors import BundleError

CONFIG = f'[encoders.{NAME}]\nvariants = ["bf16"]\n'
WAYS = {
    "thread": "",
    "process": '[engine]\nisolation = "process"\n',
    "front ends": "[server]\nfrontends = 2\n",
}


@pytest.fixture
def bundle(minilm_repository: Path, tmp_path: Path) -> Bundle:
    return openvino_made.bundle(minilm_repository, tmp_path / "repository")


@pytest.fixture(scope="module", params=WAYS)
def server(
    request: pytest.FixtureRequest, minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("openvino")
    openvino_made.bundle(minilm_repository, folder / "repository")
    with serve(folder / "repository", folder, CONFIG + WAYS[request.param]) as running:
        yield running


def test_it_is_served_beside_the_first(server: ServerProcess) -> None:
    with trimtab.Client(server.url) as client:
        first, second = (each for each in client.encoder().variants)
        assert (first.name, second.name, second.loaded) == ("fp32", "bf16", True)
        whole = client.embed_detailed(TEXTS)
        answer = client.embed_detailed(TEXTS, variant="bf16")
        assert (answer.variant, answer.space) == ("bf16", second.space)
        assert whole.space == first.space != second.space
        cosines = (whole.vectors * answer.vectors).sum(1)
        assert cosines.min() > 0.9999
        alone = np.concatenate([client.embed([text], variant="bf16") for text in TEXTS])
        assert (alone * answer.vectors).sum(1).min() > 0.99999


def test_it_runs_where_the_place_runs(server: ServerProcess) -> None:
    """Only there is OpenVINO loaded: in the device's process, if it has one."""
    child = child_of(server.process.pid)
    if child:
        assert "openvino" in Path(f"/proc/{child}/maps").read_text()
        assert "openvino" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_a_space_of_its_own(bundle: Bundle) -> None:
    """The same files in ONNX Runtime give other vectors, and so another space."""
    first, second = bundle.manifest.variants
    moved = openvino_made.manifests_made.moved(bundle.manifest.output, second.files)
    other = msgspec.structs.replace(second, name="other", runner="onnx", moved=moved)
    openvino_made.write(bundle.path, [first, second, other])
    manifest = bundles.read(bundle.path).manifest
    assert len({variants.alone(manifest, each).space for each in manifest.variants}) == 3
    openvino_made.write(bundle.path, [first, msgspec.structs.replace(second, runner="onnx")])
    with pytest.raises(BundleError, match=r"space .* of variant bf16, and its files make"):
        bundles.read(bundle.path)


def test_an_unknown_runner_is_named(bundle: Bundle) -> None:
    path = bundle.path / bundles.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["towers"][0]["variants"][1]["runner"] = "tvm"
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"runner.*'tvm'|'tvm'.*runner"):
        bundles.read(bundle.path)
