"""Tokenises short ASCII texts as BERT's tokenizers do, in less time than it takes to call the library.

Only for tokenizers whose parts are BERT's own, and texts of printable ASCII, where these parts are simple:
BertNormalizer changes at most the case; BertPreTokenizer splits at spaces, and before and after each
punctuation character; WordPiece takes the longest piece that it knows, again and again (Devlin et al. 2019).
Anything else is left to the library, and so is a text that may contain an added token such as [MASK].
"""

import json
import re

import tokenizers

# How much work unknown words may be, as the sum of their squared lengths: the library is faster at these.
_MOST_WORK = 1000
_WORDS = re.compile(r"[a-zA-Z0-9]+|[^a-zA-Z0-9 ]")
_NOT_ALPHANUMERIC = re.compile(r"[^a-zA-Z0-9\s]")
# Every tokenizer is compared with the library on these.
_TRIALS = (
    "".join(map(chr, range(0x20, 0x7F))).replace("[", "").replace("<", ""),
    "The QUICK brown fox's x86_64-libs (unstable), e.g. 3.14 & co: internationalisation!",
    "  two  spaces  and qqqzzzjjjxxx0123456789  ",
    "thirty-one-letters-are-still-few abcdefghijklmnopqrstuvwxyzabcde",
    "",
)


class WordPiece:
    """The words and pieces of a vocabulary."""

    def __init__(
        self, vocabulary: dict[str, int], prefix: str, unknown: int, longest: int, *, lower: bool
    ) -> None:
        self._vocabulary = vocabulary
        self._prefix = prefix
        self._unknown = unknown
        self._longest = longest
        self._lower = lower
        self._guards: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> "WordPiece | None":
        """The same as the tokenizer, for the texts that it takes; None if the tokenizer has other parts."""
        parts = json.loads(tokenizer.to_str())
        model, normalizer, splits = parts["model"], parts["normalizer"] or {}, parts["pre_tokenizer"] or {}
        kinds = model.get("type"), normalizer.get("type"), splits.get("type")
        if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
            return None
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        if model["unk_token"] not in vocabulary:
            return None
        made = cls(
            vocabulary, model["continuing_subword_prefix"], vocabulary[model["unk_token"]],
            model["max_input_chars_per_word"], lower=normalizer["lowercase"],
        )  # fmt: skip
        made._guards = tuple({_guard(each["content"]) for each in parts["added_tokens"]})
        for text in _TRIALS:
            ids = made.ids(text)
            if ids is not None and ids != tokenizer.encode(text, add_special_tokens=False).ids:
                return None
        return made

    def ids(self, text: str) -> list[int] | None:
        """A text's ids, without special tokens; None if it is one for the library."""
        if not (text.isascii() and text.isprintable()):
            return None
        lowered = text.lower()
        for guard in self._guards:
            if guard in lowered:
                return None
        ids: list[int] = []
        find, work = self._vocabulary.get, 0
        for word in _WORDS.findall(lowered if self._lower else text):
            known = find(word)
            if known is None or len(word) > self._longest:
                work += len(word) ** 2
                if work > _MOST_WORK:
                    return None
                ids += self._pieces(word)
            else:
                ids.append(known)
        return ids

    def _pieces(self, word: str) -> list[int]:
        """The longest piece that the word begins with, then the longest that follows, and so on."""
        if len(word) > self._longest:
            return [self._unknown]
        find, pieces, start, end = self._vocabulary.get, list[int](), 0, len(word)
        while start < len(word):
            while True:
                piece = find(self._prefix + word[start:end] if start else word[:end])
                if piece is not None:
                    break
                end -= 1
                if end == start:
                    return [self._unknown]
            pieces.append(piece)
            start, end = end, len(word)
        return pieces


def _guard(added: str) -> str:
    """What a text has in it, in lower case, if it has this added token in it."""
    found = _NOT_ALPHANUMERIC.search(added)
    return found[0].lower() if found else added.lower()
