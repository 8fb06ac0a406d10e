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


def first(field: str, value: Any) -> Edit:
    return lambda manifest: manifest["variants"][0].update({field: value})


def third(*path: Any, value: Any) -> Edit:
    def change(manifest: dict[str, Any]) -> None:
        found = manifest["variants"][2]
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value

    return change


def top(field: str, value: Any) -> Edit:
    return lambda manifest: manifest.update({field: value})


INTERVAL = ("report", "fidelity", "query_only_ndcg")
WRONG: list[tuple[Edit, str]] = [
    *((top("int8_limit", value), "int8_limit") for value in (0, -0.5, 1e300, 1e-300, 2.0)),
    *((top("max_tokens", value), "max_tokens") for value in (0, -3, 1 << 40)),
    *((top("dimensions", value), "dimensions") for value in (0, -1, 1 << 30)),
    *((top("pad_id", value), "pad_id") for value in (-1, 1 << 40)),
    (top("version", 0), "version"),
    (top("name", "../x"), "name"),
    (top("name", "x\n"), "name"),
    (top("space", "x"), "space"),
    (top("variants", []), "variants"),
    (lambda manifest: manifest["variants"].append(manifest["variants"][1]), "two variants alike"),
    (lambda manifest: manifest["variants"].reverse(), "a space or dimensions of its own"),
    (lambda manifest: manifest["tokenizer"].update(size=-1), "size"),
    (lambda manifest: manifest["tokenizer"].update(sha256="0"), "sha256"),
    (lambda manifest: manifest["tokenizer"].update(path=bundle.MANIFEST), "one file two contents"),
    (first("inputs", ["input_ids"]), "reads input_ids"),
    (first("inputs", ["input_ids", "attention_mask", "pixels"]), "pixels"),
    (first("files", []), "files"),
    (first("dimensions", 8), "dimensions of its own"),
    (third("dimensions", value=64), "64 dimensions, and the encoder 32"),
    (third("int8_limit", value=3.0), "int8_limit 3.0"),
    (third("space", value="0" * 16), "its files make"),
    (third("passes", "exit", value=-1), "exit"),
    (third("passes", "ffn", value=0.0), "ffn"),
    (third("passes", "width", value=7), "was made 7 wide"),
    (third("report", "fidelity", "speedup", 0, "factor", value=-2.5), "factor"),
    (third("report", "fidelity", "source_ndcg", value=1.5), "source_ndcg"),
    (third(*INTERVAL, "value", value=1e300), "query_only_ndcg.value"),
    (third(*INTERVAL, "low", value=0.9), "from low to high"),
    (lambda manifest: manifest["variants"][0]["states"].update(width=3), "3 components of states"),
    (lambda manifest: manifest["variants"][0]["states"].update(layers=0), "layers"),
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
