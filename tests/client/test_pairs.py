"""What is read of a pair: the ids and token types that the `tokenizers` library itself has, cut by "longest
first"."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from bench.chaos.vocabularies import MADE
from tests.client.test_tokens import DIRECTIONS, LONG, TEXTS
from trimtab.errors import BundleError
from trimtab.inputs.pair import PairInput
from trimtab.kinds import Truncate
from trimtab.pairs import PairTokenizer, longest_first
from trimtab.values.column import stacked

LIMITS = (11, 16, 33)
ENDS = [("[CLS]", 2), ("[SEP]", 3)]
TEMPLATES = {
    "BERT's": "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
    "RoBERTa's": "[CLS] $A [SEP] [SEP] $B [SEP]",
    "of odd types": "[CLS]:3 $A:2 [SEP]:1 $B:0 [SEP]:7",
    "with nothing between": "[CLS] $A $B:1",
    "with little around": "$A [SEP] $B",
}


@cache
def made(kind: str, template: str = "") -> str:
    """A tokenizer's JSON; `template`: another one for pairs."""
    tokenizer = MADE[kind]()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=TEMPLATES[template], special_tokens=ENDS
        )
    return str(tokenizer.to_str())


@cache
def ours(json: str, most: int) -> PairTokenizer:
    return PairTokenizer(tokenizers.Tokenizer.from_str(json), most)


@cache
def library(json: str, most: int, how: Truncate) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if how in DIRECTIONS:
        tokenizer.enable_truncation(most, strategy="longest_first", direction=DIRECTIONS[how])
    return tokenizer


def check(json: str, most: int, first: str, second: str) -> None:
    whole = library(json, most, "none").encode(first, second)
    for how in DIRECTIONS:
        (read,) = ours(json, most).read([(first, second)], how)
        expected = library(json, most, how).encode(first, second)
        assert read.ids.tolist() == expected.ids
        assert read.types.tolist() == expected.type_ids
        assert read.count == len(whole.ids) if read.whole else most < read.count <= len(whole.ids)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", MADE)
@settings(deadline=None, max_examples=15)
@given(first=TEXTS, second=TEXTS, most=st.sampled_from(LIMITS))
def test_what_is_read_is_what_the_library_reads(
    kind: str, template: str, first: str, second: str, most: int
) -> None:
    check(made(kind, template), most, first, second)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram of words"])
@settings(deadline=None, max_examples=150)
@given(first=st.integers(0, 60), second=st.integers(0, 60), most=st.sampled_from(LIMITS))
def test_texts_of_all_lengths(kind: str, first: int, second: int, most: int) -> None:
    check(made(kind, "BERT's"), most, "a " * first, "b " * second)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_long_texts(kind: str, text: str) -> None:
    """Beside short ones: of two long texts, the library keeps every pair of their pieces in memory."""
    for most in (16, 33):
        for other in ("", "the fox"):
            check(made(kind, "RoBERTa's"), most, text, other)
            check(made(kind, "RoBERTa's"), most, other, text)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes"])
@pytest.mark.parametrize("lengths", [(90, 100), (100, 90), (100, 100), (60, 300), (300, 60), (15, 300)])
def test_two_long_texts(kind: str, lengths: tuple[int, int]) -> None:
    """Both longer than what is tokenised of a text at first."""
    first, second = ("word " * count for count in lengths)
    for most in (11, 16):
        check(made(kind, "RoBERTa's"), most, first, second)


@given(first=st.integers(0, 100), second=st.integers(0, 100), most=st.integers(2, 100))
def test_the_longer_one_is_cut(first: int, second: int, most: int) -> None:
    if first + second <= most:
        return
    kept = longest_first(first, second, most)
    assert sum(kept) == most and kept[0] <= first and kept[1] <= second
    if min(first, second) <= most // 2:
        assert min(kept) == min(first, second), "the shorter one is whole"
    else:
        assert abs(kept[0] - kept[1]) == most % 2


def test_a_query_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ours(made("wordpiece", "BERT's"), 16)
    asked: list[list[str]] = []

    class Counting:
        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            asked.append(list(texts))
            return library(made("wordpiece", "BERT's"), 16, "none").encode_batch_fast(texts, **options)

    monkeypatch.setattr(tokenizer, "_tokenizer", Counting())
    read = tokenizer.read([("the fox", f"text {n}") for n in range(3)], "end")
    assert len(read) == 3 and asked[0] == ["the fox", "text 0", "text 1", "text 2"]


def test_only_a_part_of_a_long_passage_is_tokenised() -> None:
    (read,) = ours(made("wordpiece", "BERT's"), 16).read([("the fox", "word " * 50_000)], "end")
    assert 16 < read.count < 200 and not read.whole


def test_types_stand_beside_padded_ids() -> None:
    read = ours(made("wordpiece", "BERT's"), 16).read([("the fox", "of text 12"), ("", "a")], "end")
    given = PairInput(pad_id=9, second=1)
    feeds = given.feeds({"ids": stacked([r.ids for r in read]), "types": stacked([r.types for r in read])})
    assert feeds["token_type_ids"].tolist() == [
        [0] * 4 + [1] * (read[0].count - 4),
        [0, 0, 1, 1] + [0] * (read[0].count - 4),
    ]
    assert feeds["input_ids"][1].tolist() == [*read[1].ids, *[9] * (read[0].count - 4)]
    assert all(array.dtype == np.int64 for array in feeds.values())
    names = ("input_ids", "attention_mask")
    only = PairInput(names=names).feeds({"ids": stacked([read[0].ids]), "types": stacked([read[0].types])})
    assert tuple(only) == names
    sample = given.sample(6)
    assert sample["types"].tolist() == [0, 0, 0, 1, 1, 1] and sample["types"].dtype == np.uint8
    assert given.rehearse(made("wordpiece", "BERT's").encode(), lambda: None).fewest == 3


def test_a_tokenizer_that_cannot_read_pairs_is_refused() -> None:
    for template, message in (
        ("[CLS] $B [SEP] $A", "each once and in order"),
        ("[CLS] $A [SEP] $B $B", "each once and in order"),
        ("[CLS] $A $B:300", "token type 300"),
        ("$A $B:1", "gives no token for a pair of empty texts"),
    ):
        tokenizer = MADE["wordpiece"]()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", pair=template, special_tokens=ENDS
        )
        with pytest.raises(BundleError, match=message):
            PairTokenizer(tokenizer, 16)
    with pytest.raises(BundleError, match="adds 3 special tokens to a pair, and the encoder reads 4"):
        PairTokenizer(tokenizers.Tokenizer.from_str(made("wordpiece", "BERT's")), 4)
