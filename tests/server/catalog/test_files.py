"""What is served is what was loaded and hashed, whatever becomes of its files; and who asks is told of it."""

import hashlib
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests import hostile, manifests_made
from tests.server.engine.test_isolation import child_of
from tests.server.models_made import ALONE, batch
from tests.server.models_made import model as made
from tests.server.server_process import NAME, serve
from trimtab import Client
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.manifest import Prompts
from trimtab.errors import BundleError, FailedPrecondition
from trimtab_server.callers.access import SERVER
from trimtab_server.catalog.ondisk import OnDisk, stamps
from trimtab_server.engine.batch import HashedFile, Model
from trimtab_server.engine.runners import loading
from trimtab_server.engine.runners.onnx import OnnxRunner
from trimtab_server.engine.runners.runner import GraphError

WEIGHTS = "weights.bin"
TEXTS = ["w1 w2", "w3", "w4 w5 w6"]
IDS = batch(np.array([2, 5, 6, 3], np.int32), np.array([2, 7, 3], np.int32))


def apart(location: str = WEIGHTS) -> tuple[bytes, bytes]:
    """The good encoder's graph with its table in a file beside it, and that file."""
    model = onnx.load_from_string(hostile.encoder())
    (table,) = (each for each in model.graph.initializer if each.name == "table")
    data = table.raw_data
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        table.external_data.add(key=key, value=value)
    return model.SerializeToString(), data


def model_in(folder: Path, *names: str, **changes: Any) -> Model:
    """A model of these files in a folder, the graph first."""

    def stored(name: str) -> HashedFile:
        content = (folder / name).read_bytes()
        return HashedFile(name, len(content), hashlib.sha256(content).hexdigest())

    files = tuple(map(stored, names))
    return made(folder=folder, files=files, dimensions=hostile.DIMENSIONS, most=64, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A graph with its weights beside it."""
    graph, data = apart()
    (tmp_path / "model.onnx").write_bytes(graph)
    (tmp_path / WEIGHTS).write_bytes(data)
    return tmp_path


def test_files_that_are_copied_over_change_nothing(folder: Path) -> None:
    """Nor do they end the process, as a file does that was mapped and is cut off."""
    session = OnnxRunner(model_in(folder, "model.onnx", WEIGHTS), "cpu")
    before = session.run(IDS, ALONE)["dense"].values
    np.testing.assert_allclose(before, hostile.vectors(["w1 w2", "w3"]), atol=1e-6)
    size = (folder / WEIGHTS).stat().st_size
    for content in (bytes(size), b""):
        (folder / WEIGHTS).write_bytes(content)  # the same inode
        np.testing.assert_array_equal(session.run(IDS, ALONE)["dense"].values, before)


@pytest.mark.parametrize("name", ["model.onnx", WEIGHTS])
def test_what_is_not_what_was_hashed_is_not_opened(name: str, folder: Path) -> None:
    model = model_in(folder, "model.onnx", WEIGHTS)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(GraphError, match=f"{name} does not have the SHA-256"):
        OnnxRunner(model, "cpu")


@pytest.mark.parametrize("location", [WEIGHTS, "../outside.bin", "sub/weights.bin"])
@pytest.mark.parametrize("listed", [(), ("other.bin",)])
def test_a_graph_reads_no_file_that_is_not_named(
    location: str, listed: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beside itself nor in the folder where the server was started."""
    graph, data = apart(location)
    inside = folder / "bundle"
    (inside / "sub").mkdir(parents=True)
    (inside / "model.onnx").write_bytes(graph)
    for path in (inside / WEIGHTS, inside / "other.bin", inside / "sub" / WEIGHTS, folder / "outside.bin"):
        path.write_bytes(data)
    monkeypatch.chdir(inside)
    with pytest.raises(Exception, match=r"[Ee]xternal"):
        OnnxRunner(model_in(inside, "model.onnx", *listed), "cpu")


def test_nor_does_a_graph_within_a_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load_from_string(apart()[0])
    (table,) = (each for each in model.graph.initializer if each.name == "table")
    table.name = "inner"
    model.graph.initializer.remove(table)
    shape = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["chosen"])], "b", [], [shape], [table]
    )
    condition = helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True)))
    choose = helper.make_node("If", ["yes"], ["table"], then_branch=branch, else_branch=branch)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([condition, choose, *nodes])
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    monkeypatch.chdir(folder)
    with pytest.raises(Exception, match="should be stored in /dev/null"):
        OnnxRunner(model_in(folder, "model.onnx"), "cpu")


def test_engines_are_those_of_the_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT gets a folder of its own with them, which goes with the session; nothing else is in it."""
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "mine.engine").write_bytes(b"mine")
    (folder / "tensorrt" / "planted.engine").write_bytes(b"planted")
    asked = []

    class Session:
        def __init__(self, graph: Path, options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            asked.append((graph, providers[0][1]))

    monkeypatch.setattr(loading.ort, "InferenceSession", Session)
    providers = (loading.TENSORRT, "CUDAExecutionProvider")
    model = model_in(folder, "model.onnx", WEIGHTS)
    loading.open_session(model, None, providers, 0)
    assert "trt_engine_cache_path" not in asked[0][1] and not asked[0][0].exists()
    mine = model_in(folder, "tensorrt/mine.engine").files
    model = model_in(folder, "model.onnx", WEIGHTS, engines=mine)
    session = loading.open_session(model, None, providers, 0)
    graph, options = asked[1]
    kept = Path(options["trt_engine_cache_path"])
    assert kept == graph.parent / "tensorrt" and graph.name == "model.onnx"
    assert not kept.is_relative_to(folder) and (graph.parent / WEIGHTS).is_file()
    assert [path.name for path in kept.iterdir()] == ["mine.engine"]
    del session
    assert not kept.exists()


def bundle(repository: Path, **changes: Any) -> Path:
    graph, data = apart()
    return hostile.bundle(repository, NAME, graph, data={WEIGHTS: data}, **changes)  # type: ignore[arg-type]


def other(folder: Path) -> Path:
    """Another bundle under the same name and number."""
    path = folder / bundles.MANIFEST
    manifest = bundles.read(folder, verify=False).manifest
    changed = manifests_made.changed(manifest, prompts=Prompts(query="w7 "))
    path.write_bytes(msgspec.json.encode(changed))
    return folder


def test_what_lies_on_disk_is_compared(tmp_path: Path) -> None:
    folder = bundle(tmp_path)
    manifest = bundles.read(folder).manifest
    it = OnDisk()
    it.remember(manifest, stamps(folder, manifest))
    it.compare(manifest, folder)
    weights = folder / "fp32" / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content)  # touched, and the same
    it.compare(manifest, folder)
    weights.write_bytes(bytes(len(content)))
    with pytest.raises(BundleError, match=r"version 1 was changed on disk, and goes on .* SHA-256"):
        it.compare(manifest, folder)
    weights.write_bytes(content)
    it.compare(manifest, folder)
    other(folder)
    with pytest.raises(BundleError, match=r"another bundle .* a number of its own, or unload .* and load"):
        it.compare(manifest, folder)
    shutil.rmtree(folder)
    with pytest.raises(BundleError, match="was changed on disk"):
        it.compare(manifest, folder)


def test_a_server_whose_files_are_changed(tmp_path: Path) -> None:
    """It answers as before, and a load that is asked for is refused; the log has what polling finds."""
    import tritonclient.grpc as triton

    repository = tmp_path / "models"
    folder = bundle(repository)
    expected = hostile.vectors(TEXTS)
    weights = folder / "fp32" / WEIGHTS
    content = weights.read_bytes()
    polled = "[versions]\npoll_seconds = 0.05\n"
    with serve(repository, tmp_path, polled) as server, Client(server.url, timeout=100) as client:
        control = triton.InferenceServerClient(server.url)

        def refused(words: str) -> None:
            with pytest.raises(Exception, match=words) as raised:
                control.load_model(NAME, client_timeout=100)
            assert "FAILED_PRECONDITION" in str(raised.value)
            np.testing.assert_allclose(client.embed(TEXTS), expected, atol=1e-6)

        space = client.encoder().space
        np.testing.assert_allclose(client.embed(TEXTS[:1]), expected[:1], atol=1e-6)
        weights.write_bytes(bytes(len(content)))
        refused("version 1 was changed on disk, and goes on as it was loaded: .*SHA-256")
        weights.write_bytes(b"")
        refused("has 0 bytes, its manifest says")
        weights.write_bytes(content)
        control.load_model(NAME, client_timeout=100)
        other(folder)
        refused("another bundle than the one that was loaded")
        assert client.encoder().space == space
        (index,) = control.get_model_repository_index().models
        assert index.state == "READY" and "another bundle" in index.reason
        assert any("ERROR" in line and "another bundle" in line for line in server.log)
        control.unload_model(NAME)
        control.load_model(NAME, client_timeout=100)
        assert client.encoder().space != space
        control.close()


@pytest.mark.parametrize("names", [(NAME,), (NAME, "other")])
def test_a_process_that_begins_anew_without_the_files(tmp_path: Path, names: tuple[str, ...]) -> None:
    """What cannot be opened again is refused, and says why; others, the device and a later load go on."""
    import tritonclient.grpc as triton

    repository = tmp_path / "models"
    for name in names:
        hostile.bundle(repository, name)
    graph = repository / NAME / "1" / "fp32" / "model.onnx"
    content = graph.read_bytes()
    expected = hostile.vectors(TEXTS)
    config = '[engine]\nisolation = "process"\ncosts = ""\n'
    with serve(repository, tmp_path, config) as server, Client(server.url, timeout=100) as client:
        control = triton.InferenceServerClient(server.url)
        np.testing.assert_allclose(client.embed(TEXTS, encoder=NAME), expected, atol=1e-6)
        graph.write_bytes(content[:-1] + b"x")
        os.kill(child_of(server.process.pid), signal.SIGKILL)
        with pytest.raises(FailedPrecondition, match=r"began anew, and cannot open it again: .*SHA-256"):
            while True:  # the call may be there before the process has ended
                client.embed(TEXTS, encoder=NAME)
        for name in names[1:]:
            np.testing.assert_allclose(client.embed(TEXTS, encoder=name), expected, atol=1e-6)
        before = child_of(server.process.pid)
        graph.write_bytes(content)
        control.load_model(NAME, client_timeout=100)
        np.testing.assert_allclose(client.embed(TEXTS, encoder=NAME), expected, atol=1e-6)
        assert child_of(server.process.pid) == before
        control.close()


async def test_polling_tells_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tests.server.misbehaving import running
    from trimtab_server.config import VersionsSettings

    folder = bundle(tmp_path)
    async with running(tmp_path, "a", versions=VersionsSettings(poll_seconds=0.01)) as (rig, _):
        assert rig.app is not None
        served = rig.app.repository
        with caplog.at_level(logging.ERROR):
            other(folder)
            await rig.until(lambda: "another bundle" in caplog.text)
        (entry,) = served.index(SERVER)
        assert entry.state == "READY" and "another bundle" in entry.reason
        with pytest.raises(FailedPrecondition, match="another bundle"):
            await served.load(SERVER, NAME)
