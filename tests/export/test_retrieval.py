"""Held-out retrieval: the sets of pairs, and the figures made of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import ExportError
from trimtab_export.variants import material, retrieval

PAIRS = [(f"question number {number}", f"the answer to {number} is written here") for number in range(60)]


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps({"query": q, "document": d}) for q, d in pairs) + "\n\n", "utf-8")
    return path


def test_gains_of_known_ranks() -> None:
    """Query i's document lies at rank i: each document is one step further from the axis than the last."""
    angles = np.linspace(0, 1, 15)
    documents = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    queries = np.tile(documents[:1], (15, 1))
    for similarity in ("cosine", "dot", "euclidean", "manhattan"):
        ndcg, recall = retrieval.gains(queries, documents, similarity)  # type: ignore[arg-type]
        np.testing.assert_allclose(ndcg[:10], 1 / np.log2(np.arange(10) + 2))
        assert list(recall) == [1.0] * 10 + [0.0] * 5
        assert not ndcg[10:].any()


@given(st.lists(st.floats(0, 1), min_size=3, max_size=40), st.integers(0, 5))
def test_retention_of_oneself_is_one_and_lies_in_its_interval(values: list[float], seed: int) -> None:
    source = np.array(values) + 0.01
    same = retrieval.retention(source, source)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    worse = source * np.random.default_rng(seed).random(len(source))
    kept = retrieval.retention(worse, source)
    assert kept.low <= kept.high <= 1.0
    assert kept.value < 1.0


def test_pairs_of_a_file(tmp_path: Path) -> None:
    assert retrieval.load(write(tmp_path / "pairs.jsonl", PAIRS)) == PAIRS


@pytest.mark.parametrize(
    "line", ['{"query": "no document"}', "[1, 2]", "not json", '{"query": 1, "document": "x"}']
)
def test_a_bad_line_is_named(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", PAIRS[:2])
    path.write_text(path.read_text("utf-8").rstrip() + "\n" + line, "utf-8")
    with pytest.raises(ExportError, match=r"pairs\.jsonl, line 3: no object"):
        retrieval.load(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--pairs .*missing cannot be read"):
        retrieval.load(tmp_path / "missing")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ExportError, match=r"--texts .*latin cannot be read"):
        retrieval.lines(tmp_path / "latin")


def test_too_few_pairs_say_so(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", PAIRS[:5])
    with pytest.raises(ExportError, match=r"pairs\.jsonl gives 5 pairs .* 20 are the least"):
        material.gather(path, None)


def test_what_is_measured_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "DOCUMENTS", 30)
    monkeypatch.setattr(material, "QUERIES", 25)
    pairs = write(tmp_path / "pairs.jsonl", PAIRS)
    texts = tmp_path / "texts.txt"
    long = [" ".join(f"word{number}-{place}" for place in range(20)) for number in range(80)]
    texts.write_text("\n".join([*long, PAIRS[0][0], ""]), "utf-8")
    for given_pairs, given_texts, name in (
        (pairs, None, "pairs.jsonl"),
        (pairs, texts, "pairs.jsonl"),
        (None, texts, "pairs made of texts.txt"),
        (None, None, "docstrings"),
    ):
        found = material.gather(given_pairs, given_texts)
        assert found.pairs.name == name
        assert (len(found.pairs.queries), len(found.pairs.documents)) == (25, 30)
        held = {*found.pairs.queries, *found.pairs.documents}
        held |= {
            f"{query} {document}"
            for query, document in zip(found.pairs.queries, found.pairs.documents, strict=False)
        }
        assert held.isdisjoint(found.texts)
        assert len(found.texts) > 1000, "docstrings where the user gave few"
        if given_texts is not None and given_pairs is not None:
            assert found.texts[:80] == long
