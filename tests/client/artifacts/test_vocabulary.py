"""The words of a tokenizer's file, whatever its model is."""

import json
from pathlib import Path
from typing import Any

import pytest

import trimtab
from tests import sparse_made
from tests.hostile import SPECIAL, WORDS


def written(folder: Path, content: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def test_of_a_bundle(tmp_path: Path) -> None:
    folder = sparse_made.bundle(tmp_path, "splade")
    assert trimtab.read_vocabulary(folder) == [*SPECIAL, *WORDS]
    assert trimtab.read_vocabulary(folder / "tokenizer.json") == [*SPECIAL, *WORDS]


def test_of_each_form(tmp_path: Path) -> None:
    added = [{"id": 3, "content": "<mask>"}]
    words = {"model": {"vocab": {"b": 1, "a": 0}}, "added_tokens": added}
    assert trimtab.read_vocabulary(written(tmp_path, words)) == ["a", "b", "", "<mask>"]
    pieces = {"model": {"vocab": [["<s>", 0.0], ["x", -1.5]]}, "added_tokens": []}
    assert trimtab.read_vocabulary(str(written(tmp_path, pieces))) == ["<s>", "x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is no tokenizer"),
        ({}, "is no tokenizer"),
        ({"model": {"vocab": {"a": "b"}}}, "is no tokenizer"),
        ({"model": {"vocab": {}}}, "has ids that are not between"),
        ({"model": {"vocab": {"a": -1, "b": 2}}}, "has ids that are not between"),
        ({"model": {"vocab": {"a": 1 << 40}}}, "has ids that are not between"),
    ],
)
def test_what_is_no_tokenizer(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(trimtab.BundleError, match=message):
        trimtab.read_vocabulary(written(tmp_path, content))
    with pytest.raises(trimtab.BundleError, match="cannot be read"):
        trimtab.read_vocabulary(tmp_path / "nowhere.json")
