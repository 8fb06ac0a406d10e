"""Turns text into the token ids that an encoder reads, with its bundle's tokenizer.

Used by the server and the exporter. Needs the package `tokenizers`, which the client alone does not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models

from trimtab import words
from trimtab.errors import BundleError
from trimtab.inputs.text import TokenTypes
from trimtab.kinds import Truncate

# Texts to try the template with when a tokenizer is loaded.
TRIALS = (
    "",
    "a",
    "the quick brown fox, and 12 more of them",
    "Größe, élan & señor",
    "如何恢复已删除的文件",
    "Как восстановить файл",
    "كيف أستعيد ملفا",
    "फ़ाइल कैसे वापस लाएँ",
    "ok 👩‍👩‍👧 \u200d\n\t...",
)
# How many tokens of a text the trials keep.
TRIAL_ROOM = 3
# How many characters per token are read first of a long text: words with their spaces have four to six.
CHARACTERS_A_TOKEN = 8
# A single text of at most so many characters is read with the GIL.
SHORT = 256
# Stands for a text's only token: no vocabulary reaches that far.
PROBE = 2**32 - 1


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """What is read of a text: int32 ids, including special tokens, and how many tokens the text has.

    If only a part of it was tokenised, it has at least `count` tokens, and more than are read.
    """

    ids: NDArray[np.int32]
    count: int
    whole: bool = True


class Tokenizer:
    """A bundle's tokenizer, which truncates texts as the `tokenizers` library itself does.

    `source` is the file, its content, or a `tokenizers.Tokenizer`, whose truncation and padding are switched
    off; `name` is its name in messages. Raises BundleError if the tokenizer cannot be read, gives no token
    for an empty text (there would be no vector), adds more special tokens than `max_tokens` has room for, or
    treats special tokens in an unusual way.
    """

    def __init__(
        self, source: Path | bytes | tokenizers.Tokenizer, max_tokens: int, *, name: str = ""
    ) -> None:
        self.max_tokens = max_tokens
        self._name = name_of(source, name)
        self._tokenizer = opened(source, self._name)
        self._head, self._tail, self.types = self._template()
        if not self._tokenizer.encode("").ids:
            raise BundleError(
                f"{self._name} gives no token for an empty text: it lacks the encoder's special tokens"
            )
        if self.special_tokens >= max_tokens:
            raise BundleError(
                f"{self._name} adds {self.special_tokens} special tokens to a text, and the encoder reads "
                f"{max_tokens} tokens altogether: nothing of a text is left. Export it with more max_tokens"
            )
        self._try()
        self._by_words = words.acts_by_words(self._tokenizer)

    @property
    def special_tokens(self) -> int:
        """How many special tokens are added to each text, before and after it."""
        return len(self._head) + len(self._tail)

    def read(self, texts: Sequence[str], how: Truncate, most: int | None = None) -> list[Tokens]:
        """The ids of each text: its first ones ("end", "none"), or its last ("start"); at most `most`, or
        `max_tokens` by default.

        A text is tokenised as a whole, since what follows a cut may change the tokens before it. Only a part
        of a long text is tokenised if that provably changes nothing (see words) and has enough tokens.
        Releases the GIL, except for a single short text, and for some 50 ns per token.
        """
        parts, most = texts, self.max_tokens if most is None else most
        if len(texts) == 1 and len(texts[0]) <= SHORT:
            # Takes less time than to hand over the GIL.
            return [self._cut(self._tokenizer.encode(texts[0]).ids, most, how)]
        if self._by_words:
            cut = words.end if how == "start" else words.beginning
            parts = [cut(text, CHARACTERS_A_TOKEN * most) for text in texts]
        rows = self._encode(parts, how, most)
        for number, (part, text) in enumerate(zip(parts, texts, strict=True)):
            if len(part) < len(text):
                enough = rows[number].count > most
                if enough:
                    rows[number] = msgspec.structs.replace(rows[number], whole=False)
                else:
                    rows[number] = self._encode([text], how, most)[0]
        return rows

    def _encode(self, texts: Sequence[str], how: Truncate, most: int) -> list[Tokens]:
        # Not `encode`, which holds the GIL throughout and computes offsets that are not needed.
        rows = self._tokenizer.encode_batch_fast(texts)
        return [self._cut(row.ids, most, how) for row in rows]

    def _cut(self, ids: list[int], most: int, how: Truncate) -> Tokens:
        count = len(ids)
        if count > most:
            head, tail = len(self._head), len(self._tail)
            room = most - head - tail
            start = head if how != "start" else count - tail - room
            ids = ids[:head] + ids[start : start + room] + ids[count - tail :]
        return Tokens(np.array(ids, np.int32), count)

    def _template(self) -> tuple[tuple[int, ...], tuple[int, ...], TokenTypes]:
        """The special tokens before and after a text, and all token types.

        The template is applied to a text of one token that no real text can have: any other probe may have no
        token in this vocabulary.
        """
        bare = tokenizers.Tokenizer(models.WordLevel({"text": PROBE}, "text"))
        if self._tokenizer.post_processor is not None:
            bare.post_processor = self._tokenizer.post_processor
        shown: Any = bare.encode("text")
        ids, types = shown.ids, shown.type_ids
        if ids.count(PROBE) != 1:
            raise BundleError(
                f"{self._name} puts a text {ids.count(PROBE)} times into what the encoder reads: its "
                "post-processor must hold the text, $A, once"
            )
        at = ids.index(PROBE)
        after = at + 1
        return (
            tuple(ids[:at]),
            tuple(ids[after:]),
            TokenTypes(tuple(types[:at]), types[at], tuple(types[after:])),
        )

    def _try(self) -> None:
        """Compare this class's truncation with the library's own, on a few texts."""
        most = self.special_tokens + TRIAL_ROOM
        whole = self._tokenizer.encode_batch_fast(TRIALS)
        hows: tuple[Truncate, ...] = ("end", "start")
        for how in hows:
            self._tokenizer.enable_truncation(most, direction="right" if how == "end" else "left")
            cut = self._tokenizer.encode_batch_fast(TRIALS)
            self._tokenizer.no_truncation()
            for text, one, other in zip(TRIALS, whole, cut, strict=True):
                ours = self._cut(one.ids, most, how)
                lengths = np.array([len(ours.ids)])
                types = self.types.rows(lengths, len(ours.ids))[0]
                if ours.ids.tolist() != other.ids or types.tolist() != other.type_ids:
                    raise BundleError(
                        f"{self._name} gives other tokens or token types for {text!r} than its template "
                        "says: its post-processor cannot be served"
                    )


def opened(source: Path | bytes | tokenizers.Tokenizer, name: str) -> tokenizers.Tokenizer:
    """The library's tokenizer, which neither truncates nor pads. BundleError if it cannot be read."""
    try:
        if isinstance(source, bytes):
            source = tokenizers.Tokenizer.from_buffer(source)
        elif isinstance(source, Path):
            source = tokenizers.Tokenizer.from_file(str(source))
    except Exception as error:  # the library raises no other type
        raise BundleError(f"{name} cannot be read as a tokenizer: {error}") from None
    source.no_truncation()
    source.no_padding()
    return source


def name_of(source: object, name: str) -> str:
    """What messages call a tokenizer."""
    return name or (str(source) if isinstance(source, Path) else "the tokenizer")
