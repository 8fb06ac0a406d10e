"""Held-out retrieval: the sets of pairs, and the figures made of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import variants_made
from trimtab.errors import ExportError
from trimtab_export.texts.domain import Role
from trimtab_export.texts.gather import key
from trimtab_export.variants import fidelity, kept, material, retrieval

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
    less = retrieval.retention(worse, source)
    assert less.low <= less.high <= 1.0
    assert less.value < 1.0


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
    with pytest.raises(ExportError, match=r"pairs\.jsonl gives 5 pairs .* at least 20 are needed"):
        material.gather(path, None)


def test_what_judges_and_chooses_is_not_trained_on(tmp_path: Path, texts: Callable[..., None]) -> None:
    texts("train", "train", "choose", "judge", "judge")
    pairs = write(tmp_path / "pairs.jsonl", PAIRS)
    given = tmp_path / "texts.txt"
    long = [" ".join(f"word{number}-{place}" for place in range(20)) for number in range(80)]
    given.write_text("\n".join([*long, PAIRS[0][0], ""]), "utf-8")
    for given_pairs, given_texts, name in (
        (pairs, None, "pairs.jsonl"),
        (pairs, given, "pairs.jsonl"),
        (None, given, "pairs made of texts.txt"),
        (None, None, ""),
    ):
        found = material.gather(given_pairs, given_texts)
        assert [(each.name, each.kind) for each in found.yours] == ([(name, "yours")] if name else [])
        assert found.watched is not None and found.watched.name == "choose 2"
        assert [(each.name, each.kind) for each in found.judge] == [
            ("judge 3", "left out"), ("judge 4", "left out"),
        ]  # fmt: skip
        assert all(each.languages == ("en",) for each in found.judge)
        for each in found.judged_by:
            assert (len(each.queries), len(each.documents)) in {(40, 60), (25, 60)}
        held = {key(text) for each in (*found.judged_by, found.watched) for text in each.texts}
        assert held.isdisjoint(key(text) for kind in found.kinds for text in kind)
        *own, first, second = found.kinds
        assert len(own) == (given_pairs is not None) + (given_texts is not None)
        assert (first[0], second[0]) == ("what is w0 x0 y0", "what is w300 x7 y16")
        if given_texts is not None and given_pairs is not None:
            assert own[0] == long, "the user's come first"


@pytest.mark.parametrize(
    ("there", "train", "choose", "judge"),
    [
        (["train", "choose", "judge"], 1, 1, 1),
        (["train", "train", "train"], 2, 0, 1),
        (["train", "choose"], 1, 0, 1),
        (["choose", "judge"], 1, 0, 1),
        (["judge", "judge"], 1, 0, 1),
        (["judge"], 1, 0, 0),
        (["train"], 1, 0, 0),
    ],
)
def test_where_kinds_are_few_one_judges_as_long_as_one_trains(
    there: list[Role], train: int, choose: int, judge: int, texts: Callable[..., None]
) -> None:
    texts(*there)
    roles = material.shared_out(material.texts_at_hand())
    assert [len(roles[each]) for each in ("train", "choose", "judge")] == [train, choose, judge]
    found = material.gather(None, None)
    assert [each.kind for each in found.judge] == ["left out" if judge else "trained on"]
    held = {key(text) for each in found.judge for text in each.texts}
    assert found.kinds and held.isdisjoint(key(text) for kind in found.kinds for text in kind)


def test_documents_that_judge_are_bounded_by_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "CHARACTERS", 1500)
    (judge,) = material.gather(None, None).judge
    assert retrieval.FEWEST <= len(judge.documents) < 60
    assert sum(map(len, judge.documents)) <= 1500


def rows(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_the_card_shows_each_set_and_the_figures_of_the_worst() -> None:
    """Over one set the variant is the source itself, over the other it finds the next query's document."""
    sets = [retrieval.Pairs(name, ["q"] * 30, ["d"] * 30, "left out", ("en",)) for name in ("same", "other")]
    whole = kept.Vectors(rows(np.linspace(0, 3, 30)), rows(np.linspace(0, 3, 30)))
    turned = kept.Vectors(np.roll(whole.queries, 1, axis=0), whole.documents)
    same, other = (
        kept.judge(pairs, now, whole, whole, "cosine")
        for pairs, now in zip(sets, (whole, turned), strict=True)
    )
    assert (same.share.ndcg.value, same.share.query_only_ndcg.value, same.share.source_ndcg) == (1, 1, 1)
    assert 0.3 < other.share.ndcg.value < 0.7
    assert kept.least([same.share.ndcg, other.share.ndcg]) == other.share.ndcg


def test_intervals_allow_for_the_variants_that_one_was_chosen_among() -> None:
    card = variants_made.card(0.9)
    assert kept.among(card, 1) is card
    wide = kept.among(card, 8).fidelity
    assert card.fidelity is not None and wide is not None
    before, after = card.fidelity.query_only_ndcg, wide.query_only_ndcg
    assert after.value == before.value
    # A normal distribution's 0.25/8 % end over its 2.5 % end: 2.734 / 1.960.
    assert after.high - after.value == pytest.approx(1.395 * (before.high - before.value), abs=1e-4)
    assert wide.sets[0].ndcg.high - wide.sets[0].ndcg.value == pytest.approx(1.395 * 0.01, abs=1e-4)
    assert wide.compared == 8


def test_a_set_over_which_the_source_finds_nothing_judges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Source:
        similarity = "cosine"

    whole = kept.Vectors(rows(np.linspace(0, 3, 30)), rows(np.linspace(0, 3, 30)))
    lost = kept.Vectors(whole.queries, np.roll(whole.documents, 15, axis=0))
    monkeypatch.setattr(fidelity, "LEAST_NDCG", 0.2)
    names = {"found": whole, "lost": lost}
    monkeypatch.setattr(fidelity, "embed_pairs", lambda graph, source, collator, pairs: names[pairs.name])
    sets = [retrieval.Pairs(name, ["q"] * 30, ["d"] * 30) for name in names]
    stick = lambda sets, file: fidelity.Reference.of(tmp_path, Source, None, sets, tmp_path / file)  # noqa: E731
    for _ in range(2):
        assert [each.name for each in stick(sets, "both").sets] == ["found"]
        monkeypatch.setattr(fidelity, "embed_pairs", None)  # the second time they are read
    monkeypatch.setattr(fidelity, "embed_pairs", lambda graph, source, collator, pairs: names[pairs.name])
    with pytest.raises(ExportError, match="finds next to nothing over lost"):
        stick(sets[1:], "lost")
    own = retrieval.Pairs("lost", ["q"] * 30, ["d"] * 30, "yours")
    assert stick([own], "own").sets == (own,), "the user's own judges whatever it says"
