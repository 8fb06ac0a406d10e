"""Text to token ids, by the bundle's tokenizer."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import msgspec

from trimtab.artifacts.manifest import Input
from trimtab.errors import InvalidArgument
from trimtab.inputs.graph import Tried
from trimtab.inputs.text import TextInput, TextSettings
from trimtab.kinds import Truncate
from trimtab.tokens import Tokenizer, Tokens
from trimtab_server.engine.batch import Payload
from trimtab_server.inputs.by_role import RoleTextReader, bytes_of
from trimtab_server.inputs.reader import ItemReader, Which

# A text has at most as many tokens as bytes, plus these.
SPECIAL_TOKENS = 4


class Counted(Protocol):
    """How many tokens an item has; not `whole`: or more."""

    @property
    def count(self) -> int: ...
    @property
    def whole(self) -> bool: ...


class TextReader(ItemReader):
    """Tokenises texts, whose units are their tokens."""

    form: ClassVar[str] = "text"
    processor: ClassVar[str] = "tokenizer"

    def __init__(self, tokenizer: Tokenizer, pad_id: int = 0) -> None:
        self._tokenizer = tokenizer
        self._pad_id = pad_id

    @classmethod
    def open(cls, declared: Input, content: bytes, name: str) -> ItemReader:
        """The bundle's tokenizer. Raises as trimtab.tokens.Tokenizer does."""
        settings = msgspec.convert(declared.settings, TextSettings)
        if settings.readings:
            return RoleTextReader.open(declared, content, name)
        return cls(Tokenizer(content, declared.most_units, name=name), settings.pad_id)

    def graph_input(self, names: Sequence[str], tried: Tried) -> TextInput:
        """Padded ids, with their mask and types."""
        fewest = max(1, tried.fewest)
        return TextInput(tuple(names), self._pad_id, self._tokenizer.types, fewest, tried.highest)

    def prompted(self, items: Sequence[str], prompt: str) -> Sequence[str]:
        """A prompt and a text are one text."""
        return [prompt + text for text in items]

    def size(self, item: str) -> int:
        """In UTF-8."""
        return bytes_of(item)

    def characters(self, item: str) -> int:
        """Its own."""
        return len(item)

    def bound(self, items: Sequence[str]) -> tuple[int, int]:
        """Tokens: at most one a byte, and no more than the encoder reads. Bytes: in UTF-8, or as Python keeps
        them."""
        most = self._tokenizer.max_tokens
        tokens = size = 0
        for text in items:
            length = most_bytes(text)
            tokens += min(length + SPECIAL_TOKENS, most)
            size += length
        return tokens, size

    def read(self, items: Sequence[str], how: Truncate) -> list[Tokens]:
        """The tokens of each text."""
        return self._tokenizer.read(items, how)

    def payloads(self, read: Sequence[Tokens], how: Truncate, which: Which) -> list[Payload]:
        """The ids of each text."""
        if how == "none":
            refuse_cut(read, self._tokenizer.max_tokens, which)
        return [Payload({"ids": tokens.ids}, len(tokens.ids), tokens.ids.tobytes()) for tokens in read]


def most_bytes(text: str) -> int:
    """At least as many bytes as a text has in UTF-8, or as Python keeps it, without going through it."""
    return len(text) if text.isascii() else 4 * len(text)


def refuse_cut(read: Sequence[Counted], most: int, which: Which) -> None:
    """InvalidArgument, which names the item, if one has more tokens than an encoder reads."""
    for row, tokens in enumerate(read):
        if tokens.count > most:
            more = "" if tokens.whole else " or more"
            raise InvalidArgument(
                f"{which(row)} has {tokens.count} tokens{more}, this encoder reads {most}: shorten it, or "
                "let it be cut with truncate=END or START"
            )
