"""Turns two texts into the token ids that an encoder reads together, such as a query and a passage.

What does not fit is taken from the longer text, and from both if each fills more than half: the strategy
"longest first" of the `tokenizers` library, with which sentence-transformers' cross-encoders read pairs. So a
passage is cut before a query, as long as the query is the shorter one.

Used by the server and the exporter. Needs the package `tokenizers`, which the client alone does not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models

from trimtab import words
from trimtab.errors import BundleError
from trimtab.kinds import Truncate
from trimtab.tokens import CHARACTERS_A_TOKEN, PROBE, TRIAL_ROOM, TRIALS, name_of, opened

Ids: TypeAlias = NDArray[np.int32]
Pair: TypeAlias = tuple[str, str]
# The second text's only token, as PROBE is the first one's.
_SECOND = PROBE - 1
_MOST_TYPES = 256


class PairTokens(msgspec.Struct, frozen=True, gc=False):
    """What is read of a pair: its ids, int32, including special tokens; their types, uint8; and how many
    tokens the pair has. If only a part of it was tokenised, it has at least `count` tokens, and more than are
    read."""

    ids: Ids
    types: NDArray[np.uint8]
    count: int
    whole: bool = True


class _Text(NamedTuple):
    """The ids of a text without special tokens; `part`: of its beginning alone, or its end."""

    ids: Ids
    part: bool


class _Segment(NamedTuple):
    """Special tokens with their types."""

    ids: Ids
    types: NDArray[np.uint8]


class PairTokenizer:
    """A bundle's tokenizer, for pairs. It truncates them as the `tokenizers` library itself does.

    `source` and `name` are as for `trimtab.tokens.Tokenizer`. Raises BundleError if the tokenizer cannot be
    read, if its template for pairs does not hold both texts once and in order, or no special token, or if it
    leaves no room for the texts.
    """

    def __init__(
        self, source: Path | bytes | tokenizers.Tokenizer, max_tokens: int, *, name: str = ""
    ) -> None:
        self.max_tokens = max_tokens
        self._name = name_of(source, name)
        self._tokenizer = opened(source, self._name)
        self._head, self._middle, self._tail, self.types = self._template()
        if not self.special_tokens:
            raise BundleError(
                f"{self._name} gives no token for a pair of empty texts: its post-processor has no special "
                "tokens for pairs"
            )
        if self.special_tokens + 2 > max_tokens:
            raise BundleError(
                f"{self._name} adds {self.special_tokens} special tokens to a pair, and the encoder reads "
                f"{max_tokens} tokens altogether: nothing of a text is left. Export it with more max_tokens"
            )
        self._by_words = words.acts_by_words(self._tokenizer)
        self._try()

    @property
    def special_tokens(self) -> int:
        """How many special tokens are added to each pair."""
        return sum(len(each.ids) for each in (self._head, self._middle, self._tail))

    def read(self, pairs: Sequence[Pair], how: Truncate) -> list[PairTokens]:
        """The ids of each pair, at most `max_tokens`: the first ones of each text ("end", "none"), or its
        last ones ("start").

        A text that stands in several pairs, such as a query, is tokenised once. Only a part of a long text is
        tokenised if that provably changes nothing. Releases the GIL while it tokenises.
        """
        known = self._known(dict.fromkeys(text for pair in pairs for text in pair), how)
        self._complete(known, pairs)
        return [self._joined(known[first], known[second], self.max_tokens, how) for first, second in pairs]

    def _known(self, texts: dict[str, None], how: Truncate) -> dict[str, _Text]:
        parts = list(texts)
        if self._by_words:
            cut = words.end if how == "start" else words.beginning
            parts = [cut(text, CHARACTERS_A_TOKEN * self.max_tokens) for text in texts]
        read = self._encode(parts)
        return {
            text: _Text(ids, len(part) < len(text))
            for text, part, ids in zip(texts, parts, read, strict=True)
        }

    def _complete(self, known: dict[str, _Text], pairs: Sequence[Pair]) -> None:
        """Tokenise texts whole where their parts do not tell what is read.

        A part is enough if it alone has more than `max_tokens`, and the other text has no more: then it is
        known which one is the longer.
        """
        missing: dict[str, None] = {}
        for pair in pairs:
            one, other = (known[text] for text in pair)
            if not (one.part or other.part):
                continue
            part, beside = (one, other) if one.part else (other, one)
            if len(part.ids) <= self.max_tokens or beside.part or len(beside.ids) > self.max_tokens:
                missing |= dict.fromkeys(text for text in pair if known[text].part)
        for text, ids in zip(missing, self._encode(list(missing)), strict=True):
            known[text] = _Text(ids, part=False)

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        rows = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(row.ids, np.int32) for row in rows]

    def _joined(self, first: _Text, second: _Text, most: int, how: Truncate) -> PairTokens:
        special = self.special_tokens
        one, other = len(first.ids), len(second.ids)
        count = one + other + special
        if count > most:
            one, other = longest_first(one, other, most - special)
        parts = (_kept(first.ids, one, how), _kept(second.ids, other, how))
        head, middle, tail = self._head, self._middle, self._tail
        ids = np.concatenate([head.ids, parts[0], middle.ids, parts[1], tail.ids])
        types = np.full(len(ids), self.types[0], np.uint8)
        types[: len(head.ids)] = head.types
        after = len(head.ids) + one
        types[after : after + len(middle.ids)] = middle.types
        types[after + len(middle.ids) :] = self.types[1]
        types[len(ids) - len(tail.ids) :] = tail.types
        return PairTokens(ids, types, count, not (first.part or second.part))

    def _template(self) -> tuple[_Segment, _Segment, _Segment, tuple[int, int]]:
        """The special tokens before, between and after the texts, and the types of the texts' tokens."""
        bare = tokenizers.Tokenizer(models.WordLevel({"first": PROBE, "second": _SECOND}, "first"))
        if self._tokenizer.post_processor is not None:
            bare.post_processor = self._tokenizer.post_processor
        shown: Any = bare.encode("first", "second")
        ids, types = shown.ids, shown.type_ids
        if [each for each in ids if each in (PROBE, _SECOND)] != [PROBE, _SECOND]:
            raise BundleError(
                f"{self._name} does not put both texts of a pair, each once and in order, into what the "
                "encoder reads: its post-processor must hold $A and then $B for pairs"
            )
        if max(types) >= _MOST_TYPES:
            raise BundleError(f"{self._name} gives the token type {max(types)}, more than {_MOST_TYPES - 1}")
        one, other = ids.index(PROBE), ids.index(_SECOND)
        head, middle, tail = (
            _Segment(np.array(ids[start:end], np.int32), np.array(types[start:end], np.uint8))
            for start, end in ((0, one), (one + 1, other), (other + 1, len(ids)))
        )
        return head, middle, tail, (types[one], types[other])

    def _try(self) -> None:
        """Compare this class's reading with the library's own, on a few pairs."""
        pairs = [*zip(TRIALS, TRIALS[::-1], strict=True), *zip(TRIALS, TRIALS, strict=True)]
        most = self.special_tokens + TRIAL_ROOM
        read = self._encode([text for pair in pairs for text in pair])
        whole = [_Text(ids, part=False) for ids in read]
        hows: tuple[Truncate, ...] = ("end", "start")
        for how in hows:
            self._tokenizer.enable_truncation(most, direction="right" if how == "end" else "left")
            cut = self._tokenizer.encode_batch_fast(pairs)
            self._tokenizer.no_truncation()
            for pair, first, second, other in zip(pairs, whole[::2], whole[1::2], cut, strict=True):
                ours = self._joined(first, second, most, how)
                if (ours.ids.tolist(), ours.types.tolist()) != (other.ids, other.type_ids):
                    raise BundleError(
                        f"{self._name} gives other tokens or token types for the pair {pair!r} than its "
                        "template says: its post-processor cannot be served"
                    )


def longest_first(first: int, second: int, most: int) -> tuple[int, int]:
    """How many tokens are kept of two texts that have so many, more than `most` together.

    The longer one is cut. If both have more than half of `most`, each keeps half; an odd token goes to the
    longer one, and to the second if they are alike.
    """
    kept = min(first, second, most // 2)
    return (most - kept, kept) if first > second else (kept, most - kept)


def _kept(ids: Ids, count: int, how: Truncate) -> Ids:
    return ids[len(ids) - count :] if how == "start" else ids[:count]
