"""A bundle that was changed, cut off or made up is refused when it is read, by the name of the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.artifacts import bundle as bundles
from trimtab.errors import BundleError


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to change."""
    return shutil.copytree(tiny_bundle, tmp_path / "repository" / "tiny" / "1")


def edit(bundle: Path, change: Callable[[Any], object]) -> None:
    path = bundle / bundles.MANIFEST
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["fp32/model.onnx", "tokenizer.json"])
def test_one_bit(name: str, bundle: Path) -> None:
    flip(bundle / name)
    with pytest.raises(BundleError, match=f"{name} does not have the SHA-256"):
        bundles.read(bundle)


def test_cut_off(bundle: Path) -> None:
    path = bundle / "fp32" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"changed or cut off"):
        bundles.read(bundle, verify=False)


def test_missing_file(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer.json is missing"):
        bundles.read(bundle, verify=False)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 3}', b"null"],
    ids=["empty", "cut", "list", "bytes", "few", "null"],
)
def test_corrupt_manifest(content: bytes, bundle: Path) -> None:
    (bundle / bundles.MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest.json cannot be read"):
        bundles.read(bundle)


def test_unknown_field(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(surprise=1))
    with pytest.raises(BundleError, match=r"surprise"):
        bundles.read(bundle)


def test_later_format(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(format=99))
    with pytest.raises(BundleError, match=r"is of format 99, this Trimtab reads format 3"):
        bundles.read(bundle)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "fp32/../../outside", "a/../../../outside"])
def test_path_that_leads_out(path: str, bundle: Path) -> None:
    (bundle.parent / "outside").write_bytes((bundle / "tokenizer.json").read_bytes())
    edit(bundle, lambda manifest: manifest["inputs"][0]["processor"].update(path=path))
    with pytest.raises(BundleError, match=r"lies outside the bundle"):
        bundles.read(bundle)


@pytest.mark.parametrize("folder", [True, False])
def test_link_that_leads_out(folder: bool, bundle: Path, tmp_path: Path) -> None:
    path = bundle / "fp32" if folder else bundle / "fp32" / "model.onnx"
    outside = tmp_path / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)
    with pytest.raises(BundleError, match=r"is a link that leads out of "):
        bundles.read(bundle)


def test_link_to_the_whole_bundle(bundle: Path, tmp_path: Path) -> None:
    """The folder itself may be a link: that is how versions are put in place by some."""
    (tmp_path / "link").symlink_to(bundle)
    assert bundles.read(tmp_path / "link").manifest == bundles.read(bundle).manifest


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle"):
        bundles.read(tmp_path)
