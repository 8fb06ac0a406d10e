"""What a stranger may put into a repository: no file of it is read that should not be, no number believed."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests import variants_made
from tests.adapters import samples
from trimtab.artifacts import adapter, bundle
from trimtab.errors import AdapterError, BundleError

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of several variants."""
    return variants_made.bundle(tmp_path_factory.mktemp("made")).path


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same, to change; the repository is three folders up."""
    return shutil.copytree(made, tmp_path / "models" / "layered" / "1")


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    """An adapter, to change."""
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter.onnx").write_bytes(b"graph")
    np.save(path / "queries.npy", np.ones((3, 4), np.float16))
    (path / adapter.MANIFEST).write_bytes(msgspec.json.encode(samples.manifest(path, "a")))
    return path


def edit(path: Path, change: Edit) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(here)


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(2 << 30)  # of nothing: it takes no room on the disk


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def outside(path: Path) -> None:
    target = path.parent.parent / f"outside-{path.name}"
    target.write_bytes(b"{}")
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (fifo, "not a regular file"),
        (listening, "cannot be read|not a regular file"),
        (Path.mkdir, "not a regular file"),
        (huge, "has more than 16777216 bytes"),
        (loop, "cannot be read"),
        (outside, "is a link that leads out of "),
        (lambda path: path.symlink_to("/dev/zero"), "is a link that leads out of "),
    ],
    ids=["fifo", "socket", "folder", "huge", "loop", "outside", "device"],
)
@pytest.mark.timeout(20)
def test_what_a_manifest_may_not_be(put: Callable[[Path], object], message: str, folder: Path) -> None:
    (folder / bundle.MANIFEST).unlink()
    put(folder / bundle.MANIFEST)
    with pytest.raises(BundleError, match=message):
        bundle.read(folder)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (fifo, "not a regular file"),
        (huge, "2147483648 bytes, its manifest says"),
        (loop, "cannot be read"),
        (outside, "is a link that leads out of "),
    ],
    ids=["fifo", "huge", "loop", "outside"],
)
@pytest.mark.timeout(20)
def test_what_a_file_may_not_be(put: Callable[[Path], object], message: str, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    put(folder / "tokenizer.json")
    for verify in (False, True):
        with pytest.raises(BundleError, match=message):
            bundle.read(folder, verify=verify)


def test_links_that_stay_inside(folder: Path, tmp_path: Path) -> None:
    """Also hard ones, which nothing tells from other files: what counts is the content."""
    blobs = folder / "blobs"
    blobs.mkdir()
    for name in ("tokenizer.json", bundle.MANIFEST):
        (folder / name).rename(blobs / name)
        (folder / name).symlink_to(blobs / name)
    graph = folder / "fp32" / "model.onnx"
    (tmp_path / "elsewhere.onnx").hardlink_to(graph)
    read = bundle.read(folder)
    file = read.manifest.variants[0].files[0]
    assert bundle.BUNDLE.content(folder, file) == graph.read_bytes()
    graph.write_bytes(bytes(file.size))
    with pytest.raises(BundleError, match="SHA-256"):
        bundle.BUNDLE.content(folder, file)


def test_a_folder_that_leads_out_of_the_repository(folder: Path, mapped: Path, tmp_path: Path) -> None:
    repository = tmp_path / "other"
    (repository / "layered" / "adapters").mkdir(parents=True)
    (repository / "layered" / "1").symlink_to(folder)
    (repository / "layered" / "adapters" / "a").symlink_to(mapped)
    assert bundle.read(repository / "layered" / "1", within=tmp_path)
    with pytest.raises(BundleError, match="leads out of the repository: put the bundle into it"):
        bundle.read(repository / "layered" / "1", within=repository)
    with pytest.raises(AdapterError, match="leads out of the repository: put the adapter into it"):
        adapter.read(repository / "layered" / "adapters" / "a", within=repository)


def test_a_link_that_is_changed_on_the_way(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the opening: the way is walked without following links."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "model.onnx").write_bytes((folder / "fp32" / "model.onnx").read_bytes())
    opened = os.open

    def swap(path: str, *arguments: Any, **options: Any) -> int:
        if path == "fp32":
            (folder / "fp32").rename(folder / "before")
            (folder / "fp32").symlink_to(tmp_path / "secret")
            monkeypatch.undo()
        return opened(path, *arguments, **options)

    file = bundle.read(folder, verify=False).manifest.variants[0].files[0]
    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.BUNDLE.content(folder, file)
    assert (folder / "fp32").is_symlink()


def test_a_manifest_nested_too_deep(folder: Path) -> None:
    text = (folder / bundle.MANIFEST).read_text()
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    (folder / bundle.MANIFEST).write_text(text.replace(f'{{"layers":{variants_made.LAYERS}}}', deep))
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.read(folder)


def at(*path: Any, value: Any) -> Edit:
    """Sets what stands there."""

    def change(manifest: dict[str, Any]) -> None:
        found: Any = manifest
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value

    return change


def do(*path: Any, act: str, with_: Any = None) -> Edit:
    """Calls a method of what stands there."""

    def change(manifest: dict[str, Any]) -> None:
        found: Any = manifest
        for key in path:
            found = found[key]
        getattr(found, act)(*([] if with_ is None else [with_]))

    return change


VARIANTS = ("towers", 0, "variants")
FIRST, THIRD = (*VARIANTS, 0), (*VARIANTS, 2)
INTERVAL = ("report", "fidelity", "query_only_ndcg")
IMAGE = {"name": "image", "kind": "image", "processor": None, "most_units": 8}
WRONG: list[tuple[Edit, str]] = [
    *((at("outputs", 0, "int8_limit", value=value), "int8_limit") for value in (0, -0.5, 1e300, 1e-300, 2.0)),
    *((at("inputs", 0, "most_units", value=value), "most_units") for value in (0, -3, 1 << 40)),
    *((at("outputs", 0, "dimensions", value=value), "dimensions") for value in (0, -1, 1 << 30)),
    (at("outputs", 0, "dimensions", value=1 << 17), "131072 dimensions, more than 65536"),
    *((at("inputs", 0, "settings", "pad_id", value=value), "pad_id") for value in (-1, 1 << 40)),
    (at("inputs", 0, "settings", value={}), "settings of the input text that cannot be.*pad_id"),
    (at("inputs", 0, "processor", value=None), "no tokenizer for the input text|it was edited"),
    (at("inputs", 0, "name", value="Text"), "name"),
    (do("inputs", act="append", with_=IMAGE), "the kind of input 'image' is not known; there is pair, text"),
    (
        at("inputs", 0, "kind", value="sound"),
        "needs a newer Trimtab.* 'sound' is not known; there is pair, text",
    ),
    (at("outputs", 0, "kind", value="colour"), "the kind of output 'colour' is not known; there is dense, "),
    (at("outputs", 0, "settings", value={"k": 1}), "it was edited"),
    (at("outputs", value=[]), "outputs"),
    (at("towers", value=[]), "towers"),
    (at("towers", 0, "input", value="words"), "not exactly one tower for each input"),
    (at("towers", 0, "outputs", value=["dense", "dense"]), "a tower with two outputs alike"),
    (at("towers", 0, "outputs", value=["dense", "sparse"]), "for the outputs sparse, which it does not"),
    (at("towers", 0, "outputs", value=["sparse"]), "for the outputs sparse, which it does not"),
    (at("version", value=0), "version"),
    (at("name", value="../x"), "name"),
    (at("name", value="x\n"), "name"),
    (at("outputs", 0, "space", value="x"), "space"),
    (at(*VARIANTS, value=[]), "variants"),
    (
        lambda manifest: manifest["towers"][0]["variants"].extend(manifest["towers"][0]["variants"][1:2]),
        "alike",
    ),
    (do(*VARIANTS, act="reverse"), "a space or dimensions of its own"),
    (at("inputs", 0, "processor", "size", value=-1), "size"),
    (at("inputs", 0, "processor", "sha256", value="0"), "sha256"),
    (at("inputs", 0, "processor", "path", value=bundle.MANIFEST), "one file two contents"),
    (at(*FIRST, "inputs", value=["input_ids"]), "reads input_ids"),
    (at(*FIRST, "inputs", value=["input_ids", "attention_mask", "pixels"]), "pixels"),
    (at(*FIRST, "files", value=[]), "files"),
    (at(*FIRST, "runner", value="python"), "runner"),
    (at(*FIRST, "tensors", value={"rows": {"name": "x"}}), "gives rows, and not dense"),
    (at(*FIRST, "tensors", "dense", "offsets", value="ends"), "gives dense with offsets"),
    (at(*FIRST, "moved", value=[{"output": "dense", "space": "0" * 16}]), "dimensions of its own"),
    (at(*THIRD, "moved", 0, "dimensions", value=64), "64 dimensions, and the encoder 32"),
    (at(*THIRD, "moved", 0, "int8_limit", value=3.0), "int8_limit 3.0"),
    (at(*THIRD, "moved", 0, "space", value="0" * 16), "its files make"),
    (at(*THIRD, "moved", value=[]), "its files make"),
    (at(*THIRD, "moved", 0, "output", value="other"), "its files make"),
    (at(*THIRD, "passes", "exit", value=-1), "exit"),
    (at(*THIRD, "passes", "ffn", value=0.0), "ffn"),
    (at(*THIRD, "passes", "width", value=7), "was made 7 wide"),
    (at(*THIRD, "report", "fidelity", "speedup", 0, "factor", value=-2.5), "factor"),
    (at(*THIRD, "report", "fidelity", "source_ndcg", value=1.5), "source_ndcg"),
    (at(*THIRD, *INTERVAL, "value", value=1e300), "query_only_ndcg.value"),
    (at(*THIRD, *INTERVAL, "low", value=0.9), "from low to high"),
    (at(*FIRST, "states", "width", value=3), "3 components of states"),
    (at(*FIRST, "states", "layers", value=0), "layers"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_a_bundle_may_not_say(change: Edit, message: str, made: Path, folder: Path) -> None:
    edit(folder / bundle.MANIFEST, change)
    with pytest.raises(BundleError, match=message):
        bundle.read(folder, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["source"].update(dimensions=0), "dimensions"),
        (lambda manifest: manifest["target"].update(version=-1), "version"),
        (lambda manifest: manifest["target"].update(encoder="../x"), "encoder"),
        (lambda manifest: manifest["target"].update(space="elsewhere"), "space"),
        (lambda manifest: manifest["report"].update(cascade_depth=0), "cascade_depth"),
        (lambda manifest: manifest["report"].update(microseconds_alone=-1.0), "microseconds_alone"),
        (lambda manifest: manifest["report"]["against_old"].update(low=2.0), "from low to high"),
        (lambda manifest: manifest["report"]["arms"]["adapted"].update(recall_10=7.0), "recall_10"),
        (lambda manifest: manifest.update(groups=["de", "de"]), "duplicate or empty group"),
    ],
)
def test_what_an_adapter_may_not_say(change: Edit, message: str, mapped: Path) -> None:
    edit(mapped / adapter.MANIFEST, change)
    with pytest.raises(AdapterError, match=message):
        adapter.read(mapped, verify=False)
