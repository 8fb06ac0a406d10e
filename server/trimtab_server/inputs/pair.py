"""Two texts to the token ids that an encoder reads together, by the bundle's tokenizer."""

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from trimtab.artifacts.manifest import Input
from trimtab.inputs.graph import Tried
from trimtab.inputs.pair import PairInput
from trimtab.inputs.text import TextSettings
from trimtab.kinds import Truncate
from trimtab.pairs import Pair, PairTokenizer, PairTokens
from trimtab_server.engine.batch import Payload
from trimtab_server.inputs.by_role import bytes_of
from trimtab_server.inputs.reader import ItemReader, Which
from trimtab_server.inputs.text import SPECIAL_TOKENS, most_bytes, refuse_cut


class PairReader(ItemReader):
    """Tokenises pairs, such as a query with a passage. Their units are their tokens.

    Each pair costs what its own tokens cost: the query of a thousand passages is read a thousand times by the
    encoder, and counted as often.
    """

    form: ClassVar[str] = "pair"
    processor: ClassVar[str] = "tokenizer"

    def __init__(self, tokenizer: PairTokenizer, pad_id: int = 0) -> None:
        self._tokenizer = tokenizer
        self._pad_id = pad_id

    @classmethod
    def open(cls, declared: Input, content: bytes, name: str) -> "PairReader":
        """The bundle's tokenizer. Raises as trimtab.pairs.PairTokenizer does."""
        settings = msgspec.convert(declared.settings, TextSettings)
        return cls(PairTokenizer(content, declared.most_units, name=name), settings.pad_id)

    def graph_input(self, names: Sequence[str], tried: Tried) -> PairInput:
        """Padded ids, with their mask and types."""
        fewest, second = max(1, tried.fewest), self._tokenizer.types[1]
        return PairInput(tuple(names), self._pad_id, fewest=fewest, highest=tried.highest, second=second)

    def prompted(self, items: Sequence[Pair], prompt: str) -> Sequence[Pair]:
        """A prompt is put before the first text."""
        return [(prompt + first, second) for first, second in items]

    def size(self, item: Pair) -> int:
        """That of the longer text, in UTF-8: limits are for one text."""
        return max(map(bytes_of, item))

    def characters(self, item: Pair) -> int:
        """Those of both texts."""
        first, second = item
        return len(first) + len(second)

    def bound(self, items: Sequence[Pair]) -> tuple[int, int]:
        """Tokens of each pair: at most one a byte, and no more than the encoder reads. Bytes of each text
        once, since a query may be in many pairs."""
        most = self._tokenizer.max_tokens
        sizes = {text: most_bytes(text) for pair in items for text in pair}
        tokens = [min(sizes[first] + sizes[second] + 2 * SPECIAL_TOKENS, most) for first, second in items]
        return sum(tokens), sum(sizes.values())

    def read(self, items: Sequence[Pair], how: Truncate) -> list[PairTokens]:
        """The tokens of each pair."""
        return self._tokenizer.read(items, how)

    def payloads(self, read: Sequence[PairTokens], how: Truncate, which: Which) -> list[Payload]:
        """The ids of each pair, and their types."""
        if how == "none":
            refuse_cut(read, self._tokenizer.max_tokens, which)
        return [
            Payload(
                {"ids": tokens.ids, "types": tokens.types},
                len(tokens.ids),
                tokens.ids.tobytes() + tokens.types.tobytes(),
            )
            for tokens in read
        ]
