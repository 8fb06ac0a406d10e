"""What is read of a text, and the token types beside it: as the `tokenizers` library itself has it."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

from bench.chaos.vocabularies import MADE
from trimtab.errors import BundleError
from trimtab.inputs.text import feeds
from trimtab.kinds import Truncate
from trimtab.tokens import Tokenizer
from trimtab.words import acts_by_words, beginning, end

LIMIT = 16
DIRECTIONS: dict[Truncate, str] = {"end": "right", "start": "left"}
PIECES = st.sampled_from(
    [
        *("the", "fox", "a", "b", "x" * 99, "x" * 100, "x" * 101, "aaab" * 40, ".", "...", ",", "12"),
        *(" ", "  ", "\t", "\n", " " * 70, "\u00a0", "\u2028", "\u200d", "\x00"),
        *("é", "e\u0301", "\u0301", "ΣΑΣ", "如何", "👩‍👩‍👧", "\ud7ff", "İ", "\ufb01", "\ufdfa"),
        *("[CLS]", "[SEP]", "[UNK]", "the fox", "<0x41>", "▁", "Ġ"),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=60).map("".join)


@pytest.fixture(scope="module")
def minilm(minilm_source: Path) -> str:
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_source / "tokenizer.json"))
    return str(tokenizer.to_str())


@cache
def ours(json: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(json), LIMIT)


@cache
def library(json: str, how: Truncate) -> tokenizers.Tokenizer:
    """The library's own, which truncates by itself, or, for "none", does not."""
    tokenizer = tokenizers.Tokenizer.from_str(json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if how in DIRECTIONS:
        tokenizer.enable_truncation(LIMIT, direction=DIRECTIONS[how])
    return tokenizer


def check(json: str, text: str) -> None:
    """Ids, counts and types of the text are the library's, however it is cut."""
    count = len(library(json, "none").encode(text).ids)
    for how in DIRECTIONS:
        (read,) = ours(json).read([text], how)
        expected = library(json, how).encode(text)
        made = feeds([read.ids], 0, ours(json).types)
        assert read.ids.tolist() == expected.ids
        assert read.count == count if read.whole else LIMIT < read.count <= count
        assert made["input_ids"].tolist() == [expected.ids]
        assert made["token_type_ids"].tolist() == [expected.type_ids]


@pytest.mark.parametrize("kind", MADE)
@settings(deadline=None, max_examples=40)
@given(text=TEXTS)
def test_what_is_read_is_what_the_library_reads(kind: str, text: str) -> None:
    check(_json(kind), text)


BY_WORDS = {kind: kind != "words" and not kind.endswith(("of whole texts", "of two words")) for kind in MADE}


@pytest.mark.parametrize("kind", [kind for kind, known in BY_WORDS.items() if known])
@settings(deadline=None, max_examples=80)
@given(text=st.lists(PIECES | st.sampled_from([" the fox", " a b", "s 12 "]), max_size=60).map("".join))
def test_a_text_that_is_cut_between_words_begins_as_it_did(kind: str, text: str) -> None:
    """As for long texts, at every place where one may be cut."""
    bare = library(_json(kind), "none")
    whole = bare.encode(text, add_special_tokens=False).ids
    for characters in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89):
        first = bare.encode(beginning(text, characters), add_special_tokens=False).ids
        assert first == whole[: len(first)]
        last = bare.encode(end(text, characters), add_special_tokens=False).ids
        assert last == whole[len(whole) - len(last) :]


def test_which_tokenizers_act_on_words(minilm: str) -> None:
    found = {kind: acts_by_words(tokenizers.Tokenizer.from_str(_json(kind))) for kind in MADE}
    assert found == BY_WORDS
    assert acts_by_words(tokenizers.Tokenizer.from_str(minilm))


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("wordpiece", lambda made: made.add_tokens(["the fox"])),
        ("wordpiece", lambda made: made.add_tokens(["a\u00a8"])),  # which NFKC makes a space and an accent
        ("words", lambda made: None),  # its normalizer strips what stands at the left
        ("wordpiece", lambda made: made.add_tokens([AddedToken("w", rstrip=True)])),
        ("words", lambda made: setattr(made, "normalizer", normalizers.Replace("a b", "ab"))),
        ("words", lambda made: setattr(made, "normalizer", normalizers.Replace(" ", ""))),
        (
            "words",
            lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Split(Regex("the .*"), "isolated")),
        ),
        ("words", lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Digits())),
        ("bytes", lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False))),
        ("bytes", lambda made: setattr(made.model, "dropout", 0.5)),
    ],
    ids=range(10),
)
def test_what_is_not_known_to_act_on_words_is_read_whole(kind: str, edit: Any) -> None:
    made = MADE[kind]()
    edit(made)
    assert not acts_by_words(made)


@pytest.mark.parametrize("how", ["end", "start", "none"])
def test_of_a_long_text_only_as_much_is_tokenised_as_it_takes(minilm: str, how: Truncate) -> None:
    (read,) = ours(minilm).read(["word " * 50_000 + "end"], how)
    assert LIMIT < read.count < 100 and not read.whole
    (read,) = ours(minilm).read(["x" * 3000 + " word" + "\t" * 3000], how)
    assert (read.count, read.whole) == (4, True)


@cache
def _json(kind: str) -> str:
    return str(MADE[kind]().to_str())


# Shortcuts that were once taken cut these at some number of characters, where each reads otherwise.
LONG = {
    "a long word where a cut may fall": "word " * 30 + "x" * 101 + " word" * 400,
    "words of almost the longest length": ("x" * 99 + " ") * 40,
    "padding before a blob": ("cell" + " " * 300 + "\n") * 14 + "q1w2e3" * 3000,
    "spaces before": " " * 5000 + "words after a flood of spaces " * 40,
    "spaces behind": "words before a flood of spaces " * 40 + " " * 5000,
    "one long word and another": "x" * 3000 + " and a word",
    "no spaces": "no spaces at all 如何恢复已删除的文件" * 300,
    "accents": "é" * 700,
    "many words": "word " * 5000,
    "a long blob": "a " * 20 + "supercalifragilistic" * 400,
    "merges over the whole": "aab" * 3000,
}


@pytest.mark.parametrize("kind", [*MADE, "minilm"])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_text_is_read_as_it_is_read_whole(kind: str, text: str, minilm: str) -> None:
    check(minilm if kind == "minilm" else _json(kind), text)


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("wordpiece", [[0, 0, 0, 0], [0, 0, 0, 0]]),
        ("wordpiece, first type 2", [[2, 0, 0, 0], [2, 0, 0, 0]]),
        ("wordpiece, text of type 1", [[0, 1, 1, 1], [0, 1, 0, 0]]),
        ("words", [[1, 0, 0, 0, 2, 3], [1, 0, 2, 3, 0, 0]]),
        ("unigram of whole texts", [[1, 1, 2], [2, 0, 0]]),
    ],
)
def test_types_stand_beside_padded_ids(kind: str, types: list[list[int]]) -> None:
    tokenizer = ours(_json(kind))
    read = tokenizer.read(["the fox", ""], "end")
    made = feeds([each.ids for each in read], 9, tokenizer.types)
    assert made["token_type_ids"].tolist() == types
    special, width = tokenizer.special_tokens, len(types[0])
    assert made["attention_mask"].tolist() == [[1] * width, [1] * special + [0] * (width - special)]
    assert all(array.dtype == np.int64 for array in made.values())


def test_a_run_that_warms_up_may_be_shorter_than_the_special_tokens() -> None:
    made = feeds([np.zeros(length, np.int32) for length in (1, 3)], 0, ours(_json("words")).types)
    assert made["token_type_ids"].shape == (2, 3)


def test_inputs_that_the_graph_has_not_are_not_made() -> None:
    names = ("input_ids", "attention_mask")
    assert tuple(feeds([np.zeros(2, np.int32)], 0, ours(_json("wordpiece")).types, names)) == names


def made_of(kind: str, single: str) -> tokenizers.Tokenizer:
    tokenizer = MADE[kind]()
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 2)])
    return tokenizer


def test_a_tokenizer_that_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no token for an empty text"):
        Tokenizer(made_of("wordpiece", "$A"), LIMIT)
    with pytest.raises(BundleError, match="puts a text 2 times"):
        Tokenizer(made_of("wordpiece", "[CLS] $A $A"), LIMIT)
    with pytest.raises(BundleError, match="adds 4 special tokens to a text, and the encoder reads 4"):
        Tokenizer(MADE["words"](), 4)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json", LIMIT)
