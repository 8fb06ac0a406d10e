"""An endless supply of texts to train on: those at hand, cut, mixed and sprinkled with words, in both roles.

The whole encoder labels whatever it reads, so a text need not make sense to teach something. Kinds of text
are drawn in proportion to the square root of their size, so that small kinds count. Spans have all lengths,
but are mostly short, since training time goes by tokens and each text has one vector. Words of the
tokenizer's vocabulary, and made-up ones of several of its pieces, cover topics that no text at hand is about.
"""

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray

from trimtab.artifacts.manifest import Prompts
from trimtab_export.source import TokenizerFile
from trimtab_export.tokens import Collator

CHUNK = 1024  # texts that are sorted by length and batched together
BATCH_TOKENS = 512
BATCH_TEXTS = 64  # otherwise hundreds of single words would fill a batch, and get hardly any steps
SHORT = 100  # characters; a shorter text is more likely a query
SHORT_ASK, LONG_ASK = 0.7, 0.2  # the share of queries
# The shares of texts that are a span, are sprinkled with words, are only words, are two spans.
SPAN, STREWN, WORDS, TWO = 0.25, 0.15, 0.30, 0.05
UPPER, LOWER = 0.04, 0.06
LEAST_WORD = 2  # letters
MADE_UP = 0.5  # of the words: of several pieces, as rare words and names are
PIECES = (1, 3)  # how many follow the first
BEGINS = ("\u2581", "\u0120")  # what SentencePiece and byte-level BPE put before a word
CONTINUES = "##"  # what WordPiece puts before a piece of a word that is not its first


class Mix:
    """The batches of chunks 0, 1 and so on: the same each time.

    Args:
        kinds: texts by their kind, at least one of at least one.
    """

    def __init__(
        self, kinds: Sequence[Sequence[str]], prompts: Prompts, collator: Collator, tokenizer: TokenizerFile
    ) -> None:
        self._kinds = [kind for kind in kinds if kind]
        self._weights = [len(kind) ** 0.5 for kind in self._kinds]
        self._prompts = (prompts.query, prompts.passage)
        self._collator = collator
        self._words, self._pieces = words(tokenizer)

    def __call__(self, chunk: int) -> list[dict[str, NDArray[np.int64]]]:
        """Batches of about BATCH_TOKENS, each of texts of similar lengths, in random order."""
        rng = random.Random(chunk)  # noqa: S311 - no secrets
        texts = [self._prompted(rng) for _ in range(CHUNK)]
        lengths = {text: self._collator.count(text) for text in texts}
        batches, batch = [], list[str]()
        for text in sorted(texts, key=lambda text: (lengths[text], text)):
            full = len(batch) == BATCH_TEXTS or (len(batch) + 1) * lengths[text] > BATCH_TOKENS
            if batch and full:
                batches.append(batch)
                batch = []
            batch.append(text)
        batches.append(batch)
        rng.shuffle(batches)
        return [self._collator(each) for each in batches]

    def tokens(self, count: int) -> list[dict[str, NDArray[np.int64]]]:
        """The first batches that have so many tokens together, or a few more."""
        batches: list[dict[str, NDArray[np.int64]]] = []
        for chunk in itertools.count():
            for batch in self(chunk):
                batches.append(batch)
                count -= int(batch["attention_mask"].sum())
                if count <= 0:
                    return batches
        raise AssertionError  # chunks have no end

    def _prompted(self, rng: random.Random) -> str:
        text = self._text(rng)
        asks = rng.random() < (SHORT_ASK if len(text) < SHORT else LONG_ASK)
        return self._prompts[0 if asks else 1] + text

    def _text(self, rng: random.Random) -> str:
        text = self._found(rng)
        drawn = rng.random()
        if drawn < SPAN:
            text = _span(rng, text, 1, 40)
        elif (drawn := drawn - SPAN) < STREWN:
            share = rng.uniform(0.1, 0.7)
            parts = _span(rng, text, 3, 60).split()
            text = " ".join(self._word(rng) if rng.random() < share else part for part in parts)
        elif (drawn := drawn - STREWN) < WORDS:
            text = " ".join(self._word(rng) for _ in range(_length(rng, 1, 8)))
        elif drawn - WORDS < TWO:
            text = f"{_span(rng, text, 3, 20)} {_span(rng, self._found(rng), 3, 20)}"
        cased = rng.random()
        return text.upper() if cased < UPPER else text.lower() if cased < UPPER + LOWER else text

    def _word(self, rng: random.Random) -> str:
        word = rng.choice(self._words)
        if self._pieces and rng.random() < MADE_UP:
            word += "".join(rng.choices(self._pieces, k=rng.randint(*PIECES)))
        return word

    def _found(self, rng: random.Random) -> str:
        (kind,) = rng.choices(self._kinds, self._weights)
        return rng.choice(kind)


def _span(rng: random.Random, text: str, least: int, most: int) -> str:
    """A random span of `least` to `most` words."""
    parts = text.split()
    count = min(len(parts), _length(rng, least, most))
    start = rng.randint(0, len(parts) - count)
    return " ".join(parts[start : start + count])


def _length(rng: random.Random, least: int, most: int) -> int:
    """Log-uniform: as often from 1 to 3 as from 10 to 30. Short texts cost little, and each has a vector."""
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


def words(tokenizer: TokenizerFile) -> tuple[list[str], list[str]]:
    """The words of a vocabulary that are one token each (at least one word), and the pieces that can
    follow."""
    tokens = tokenizers.Tokenizer.from_str(tokenizer.json).get_vocab()
    begins = [token[1:] for token in tokens if token.startswith(BEGINS)]
    if begins:
        pieces = [token for token in tokens if not token.startswith(BEGINS)]
    else:
        begins = [token for token in tokens if not token.startswith(CONTINUES)]
        pieces = [token[len(CONTINUES) :] for token in tokens if token.startswith(CONTINUES)]
    return (
        sorted({word for word in begins if len(word) >= LEAST_WORD and word.isalpha()}) or ["a"],
        sorted({piece for piece in pieces if piece.isalpha()}),
    )
