"""Adapters on disk: read whole, or refused by the name of the file; and the calibrator they carry."""

import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters import samples
from trimtab.artifacts import adapter as adapters
from trimtab.artifacts import artifact
from trimtab.artifacts.adapter import Calibrator
from trimtab.errors import AdapterError, InvalidArgument


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "adapters" / "to-old"
    written = samples.write(folder)
    found = adapters.read(folder)
    assert found.manifest == written
    assert found.file(written.graph) == folder / "adapter.onnx"
    baseline = found.baseline()
    assert baseline is not None
    assert baseline.shape == (4, 4)


def test_adapters_are_found_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    for name in ("b", "a", ".c.partial"):
        samples.write(tmp_path / "new" / "adapters" / name)
    assert [path.name for path in adapters.adapters(tmp_path, "new")] == ["a", "b"]
    assert list(adapters.adapters(tmp_path, "other")) == []
    with pytest.raises(InvalidArgument):
        list(adapters.adapters(tmp_path, "../new"))


@pytest.mark.parametrize("file", ["adapter.onnx", "queries.npy"])
def test_a_changed_file_is_named(file: str, tmp_path: Path) -> None:
    samples.write(tmp_path / "a")
    content = bytearray((tmp_path / "a" / file).read_bytes())
    content[-1] ^= 1
    (tmp_path / "a" / file).write_bytes(content)
    with pytest.raises(AdapterError, match=rf"{file} does not have the SHA-256"):
        adapters.read(tmp_path / "a")
    assert adapters.read(tmp_path / "a", verify=False)
    (tmp_path / "a" / file).unlink()
    with pytest.raises(AdapterError, match=rf"{file} is missing. Copy the adapter again"):
        adapters.read(tmp_path / "a", verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"format": 1}, "fit it again with this version"),
        ({"verdict": "perfect"}, "Invalid enum value 'perfect'"),
        ({"calibrator": {"adapted": [0.0, 1.0], "target": [1.0, 0.0]}}, "strictly increasing"),
        ({"graph": {"path": "../adapter.onnx", "sha256": "0" * 64, "size": 1}}, "lies outside the adapter"),
    ],
)
def test_a_wrong_manifest_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    samples.write(tmp_path / "a")
    path = tmp_path / "a" / adapters.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        adapters.read(tmp_path / "a")


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, queries=np.zeros((2, 4), np.float16))
    return content.getvalue()


HALVES = npy(np.zeros((3, 4), np.float16))
BASELINES = {
    "nothing": b"",
    "an archive": npz(),
    "strings": npy(np.array([["a"]])),
    "float32": npy(np.zeros((3, 4), np.float32)),
    "a row": npy(np.zeros(4, np.float16)),
    "no rows": npy(np.zeros((0, 4), np.float16)),
    "another width": npy(np.zeros((3, 5), np.float16)),
    "objects": HALVES.replace(b"'<f2'", b"'|O' "),
    "cut off": HALVES[:-1],
    "more rows than memory holds": HALVES.replace(b"(3, 4)", b"(9" + b"0" * 12 + b", 4)").replace(
        b" " * 12, b"", 1
    ),
    "a header that Python's tokenizer breaks on": HALVES.replace(b"'fortran_order'", b"'frtaro'n_order'"),
    "a header without an end": HALVES.replace(b"}", b"("),
}


@pytest.mark.parametrize("content", BASELINES.values(), ids=BASELINES)
def test_a_baseline_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    path, manifest = tmp_path / "a" / "queries.npy", samples.write(tmp_path / "a")
    path.write_bytes(content)
    entry = msgspec.structs.replace(artifact.digest(path), path=path.name)
    found = adapters.AdapterFolder(
        path=path.parent, manifest=msgspec.structs.replace(manifest, queries=entry)
    )
    with pytest.raises(AdapterError, match=r"queries\.npy (cannot be read|holds .* instead of queries)"):
        found.baseline()


def test_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"is not an adapter: it has no adapter.json"):
        adapters.read(tmp_path)


increasing = st.lists(st.integers(-1000, 1000), min_size=2, max_size=20, unique=True).map(sorted)


@given(increasing, increasing, st.lists(st.floats(-2, 2), min_size=1, max_size=50))
def test_a_calibrator_keeps_order_and_ties(xs: list[int], ys: list[int], scores: list[float]) -> None:
    knots = min(len(xs), len(ys))
    calibrator = Calibrator(
        adapted=tuple(x / 500 for x in xs[:knots]), target=tuple(y / 500 for y in ys[:knots])
    )
    given_scores = np.array([*scores, scores[0]])
    result = calibrator(given_scores)
    order = np.argsort(given_scores, kind="stable")
    assert (np.diff(result[order]) >= -1e-12).all()
    assert result[0] == result[-1]
    assert np.allclose(calibrator(np.array(calibrator.adapted)), calibrator.target)


def test_a_calibrator_goes_on_with_its_end_slopes() -> None:
    calibrator = Calibrator(adapted=(0.0, 1.0, 2.0), target=(0.0, 1.0, 5.0))
    assert calibrator(np.array([-1.0, 0.5, 1.5, 3.0])).tolist() == [-1.0, 0.5, 3.0, 9.0]
