"""Pairs of texts: the source's tokenizer, with its template for pairs."""

from collections.abc import Callable
from typing import Any, ClassVar

from trimtab_export import sentences
from trimtab_export.kinds.text import TextMaker
from trimtab_export.source import Source
from trimtab_export.tokens import PairCollator


class PairMaker(TextMaker):
    """Pairs, as the tokens that the encoder reads together."""

    kind: ClassVar[str] = "pair"

    def collator(self, source: Source) -> PairCollator:
        """With the server's own code."""
        return PairCollator(source.tokenizer, source.max_tokens)

    def samples(self, count: Callable[[Any], int], most: int) -> list[Any]:
        """The shipped texts in pairs, in which either text or both are too long; the last fills `most`."""
        texts = sentences.load()
        long = sentences.of_length(most, lambda text: count((text, "")))
        pairs = [*zip(texts, texts[1:] + texts[:1], strict=True), *zip(texts[::5], texts[::-5], strict=False)]
        short = texts[0]
        return [*pairs, (long, short), (long, long[len(long) // 3 :]), (short, long)]
