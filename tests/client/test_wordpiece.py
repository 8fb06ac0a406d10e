"""Short texts, tokenised by us and by the library."""

import random
import string

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from trimtab.wordpiece import WordPiece

WORDS = ("the", "cat", "The", "index", "un", "##want", "##ed", "##ing", "12", "##3", "c", "##a", "##t", "a-b")
PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


def made(*, lower: bool = True, longest: int = 20) -> tokenizers.Tokenizer:
    """A tokenizer of BERT's parts, that knows some words and pieces, and most punctuation."""
    known = ["[UNK]", "[MASK]", *WORDS, *string.punctuation.replace("&", "")]
    vocabulary = {word: number for number, word in enumerate(known)}
    made = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=longest)
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[UNK]", "[MASK]"])
    return made


def random_text(random: random.Random) -> str:
    """Words that are known, and characters of all kinds."""
    parts = [random.choice((*WORDS, " ", " ", "  ", random.choice(PRINTABLE))) for _ in range(12)]
    return "".join(parts)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("longest", [20, 5])
def test_the_ids_are_the_librarys(lower: bool, longest: int) -> None:
    library = made(lower=lower, longest=longest)
    ours, rng, read = WordPiece.of(library), random.Random(7), 0
    assert ours is not None
    for _ in range(5000):
        text = random_text(rng)
        ids = ours.ids(text)
        if ids is not None:
            read += 1
            assert ids == library.encode(text, add_special_tokens=False).ids, text
    assert read > 2500


@pytest.mark.parametrize("text", ["a café", "tab\there", "line\nline", "the [MASK]", "the [mask]", "q" * 64])
def test_what_is_not_simple_is_left_to_the_library(text: str) -> None:
    ours = WordPiece.of(made(longest=100))
    assert ours is not None
    assert ours.ids(text) is None


def test_a_text_that_may_have_an_added_token_is_left_to_the_library() -> None:
    library = made()
    library.add_tokens([AddedToken("cat", normalized=True), AddedToken("x<y", normalized=False)])
    ours = WordPiece.of(library)
    assert ours is not None
    assert ours.ids("the index") == library.encode("the index").ids
    for text in ("the Cat", "concatenate", "x<y", "a < b"):
        assert ours.ids(text) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda each: setattr(each, "normalizer", normalizers.NFKC()),
        lambda each: setattr(each, "normalizer", None),
        lambda each: setattr(each, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda each: setattr(each, "model", models.WordLevel({"[UNK]": 0}, "[UNK]")),
        lambda each: setattr(each, "model", models.WordPiece({"the": 0}, unk_token="[UNK]")),
    ],
)
def test_a_tokenizer_of_other_parts_is_left_to_the_library(change: object) -> None:
    library = made()
    assert callable(change)
    change(library)
    assert WordPiece.of(library) is None
