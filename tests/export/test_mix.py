"""What is trained on: of all kinds and lengths, in both roles, the same each time."""

from collections.abc import Callable

import numpy as np
import pytest
import tiny_encoders
import tokenizers
from tokenizers import models

from trimtab.artifacts.manifest import Prompts
from trimtab_export import tokens
from trimtab_export.source import TokenizerFile
from trimtab_export.variants import mix

PROMPTS = Prompts(query="query: ", passage="passage: ")
KINDS = [
    [f"alpha text {number} with many words of one kind" * 6 for number in range(90)],
    ["beta is few"] * 10,
]


def vocabulary() -> TokenizerFile:
    """A tokenizer that knows words."""
    wordpiece = tiny_encoders.wordpiece().get_vocab()
    for number in range(300):
        word = "".join(chr(ord("a") + digit) for digit in divmod(number, 20))
        wordpiece |= {f"word{word}": len(wordpiece), f"##rest{word}": len(wordpiece) + 1}
    made = tokenizers.Tokenizer(models.WordPiece(wordpiece, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer, made.post_processor = (
        getattr(tiny_encoders.wordpiece(), part) for part in ("normalizer", "pre_tokenizer", "post_processor")
    )
    return tokens.plain(made.to_str(), 0)


@pytest.fixture(scope="module")
def made() -> mix.Mix:
    tokenizer = vocabulary()
    return mix.Mix(KINDS, PROMPTS, tokens.Collator(tokenizer, 40), tokenizer)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of a chunk, as they are before they are batched."""
    read: list[str] = []

    class Recorder(tokens.Collator):
        def __call__(self, texts: object, prompt: str = "") -> dict[str, np.ndarray]:
            read.extend(texts)  # type: ignore[arg-type]
            return super().__call__(texts, prompt)  # type: ignore[arg-type]

    tokenizer = vocabulary()
    mix.Mix(KINDS, PROMPTS, Recorder(tokenizer, 40), tokenizer)(0)
    return read


def test_a_chunk_is_the_same_each_time_and_another_one_is_not(made: mix.Mix) -> None:
    one, again, other = ([batch["input_ids"].tobytes() for batch in made(chunk)] for chunk in (3, 3, 4))
    assert one == again
    assert len(set(one) & set(other)) < 0.2 * len(one), "a batch of one long text may come again"


def test_batches_are_of_alike_lengths_and_of_so_many_tokens(made: mix.Mix) -> None:
    batches = made(0)
    assert sum(len(batch["input_ids"]) for batch in batches) == mix.CHUNK
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert real > 0.9 * sum(batch["input_ids"].size for batch in batches), "few pads"
    assert max(batch["input_ids"].size for batch in batches) <= mix.BATCH_TOKENS


def test_both_roles_have_their_prompts_and_short_texts_ask(texts: list[str]) -> None:
    asked = [text.startswith(PROMPTS.query) for text in texts]
    assert all(text.startswith((PROMPTS.query, PROMPTS.passage)) for text in texts)
    short = [asks for text, asks in zip(texts, asked, strict=True) if len(text) < mix.SHORT]
    long = [asks for text, asks in zip(texts, asked, strict=True) if len(text) > mix.SHORT + 20]
    assert np.mean(short) > 0.5 > np.mean(long) > 0.05


def test_lengths_and_cases_and_kinds_are_many(texts: list[str]) -> None:
    words = sorted(len(text.split()) - 1 for text in texts)
    assert words[0] <= 1
    assert words[len(words) // 2] < 30 < words[-1]
    bare = [text.split(": ", 1)[1] for text in texts]
    assert any(text.isupper() for text in bare)
    beta = sum("beta" in text.lower() for text in bare) / len(bare)
    assert 0.1 < beta < 0.5, "a tenth of the texts, a quarter by the root of their number"


def test_words_of_the_vocabulary_are_strewn_in(texts: list[str]) -> None:
    known = set(" ".join(" ".join(kind) for kind in KINDS).split())
    foreign = {word for text in texts for word in text.split(": ", 1)[1].lower().split()} - known
    assert len(foreign) > 100


def test_words_of_several_pieces_are_made_up(texts: list[str]) -> None:
    words = {word for text in texts for word in text.split(": ", 1)[1].lower().split()}
    assert sum(word.startswith("word") and "rest" in word for word in words) > 50


def test_batches_have_so_many_texts(made: mix.Mix) -> None:
    assert max(len(batch["input_ids"]) for batch in made(1)) <= mix.BATCH_TEXTS


def test_words_are_those_that_are_a_token_each() -> None:
    found, _ = mix.words(vocabulary())
    assert len(found) == 300
    assert all(word.startswith("word") for word in found), "no ##rest, no letters and signs"


@pytest.mark.parametrize(("make", "least"), [(tiny_encoders.byte_bpe, 20), (tiny_encoders.unigram, 100)])
def test_words_where_what_begins_one_is_marked(make: Callable[[], tokenizers.Tokenizer], least: int) -> None:
    found, pieces = mix.words(tokens.plain(make().to_str(), 0))
    assert len(found) >= least
    assert pieces
    assert all(piece.isalpha() for piece in pieces)
    assert {"de", "and", "the"} & set(found)
    assert all(word.isalpha() for word in found)
