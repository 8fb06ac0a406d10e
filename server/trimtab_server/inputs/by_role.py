"""Text to token ids, arranged by its role: ColBERT's queries and passages, for example."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.manifest import Input, Prompts
from trimtab.errors import FailedPrecondition, InvalidArgument
from trimtab.inputs.arranging import Arranger
from trimtab.inputs.graph import Tried
from trimtab.inputs.text import Reading, TextInput, TextSettings
from trimtab.kinds import Role, Truncate
from trimtab.tokens import Tokenizer
from trimtab_server.engine.batch import Payload
from trimtab_server.inputs.reader import ItemReader, Which

# A text has at most as many tokens as bytes, plus these and a marker.
SPECIAL_TOKENS = 5


class RoleText(NamedTuple):
    """A text with its prompt, and its role."""

    text: str
    role: Role


class ReadText(msgspec.Struct, frozen=True, gc=False):
    """What was read of a text: the arrays of its payload, how many tokens it has (at least, if it is not
    whole), and its role."""

    arrays: Mapping[str, NDArray[np.generic]]
    count: int
    whole: bool
    role: Role


class RoleTextReader(ItemReader):
    """Tokenises texts and arranges their tokens. An item is a str as it was sent, then a RoleText."""

    form: ClassVar[str] = "text"
    processor: ClassVar[str] = "tokenizer"
    by_role = True

    def __init__(self, tokenizer: Tokenizer, pad_id: int, readings: Mapping[Role, Reading]) -> None:
        self._tokenizer = tokenizer
        self._pad_id = pad_id
        self._arrangers = {role: Arranger(reading) for role, reading in readings.items()}

    @classmethod
    def open(cls, declared: Input, content: bytes, name: str) -> "RoleTextReader":
        """The bundle's tokenizer. Raises as trimtab.tokens.Tokenizer does."""
        settings = msgspec.convert(declared.settings, TextSettings)
        tokenizer = Tokenizer(content, declared.most_units, name=name)
        return cls(tokenizer, settings.pad_id, settings.readings)

    def graph_input(self, names: Sequence[str], tried: Tried) -> TextInput:
        """Padded ids with their masks; all token types are 0."""
        fewest = max(1, tried.fewest)
        return TextInput(tuple(names), self._pad_id, fewest=fewest, highest=tried.highest)

    def prompted(self, items: Sequence[str], prompt: str) -> Sequence[str]:
        """A prompt and a text are one text."""
        return [prompt + text for text in items]

    def in_role(self, items: Sequence[str], role: Role | None, prompts: Prompts) -> Sequence[RoleText]:
        """Texts with their prompt and role. FailedPrecondition without a role."""
        if role is None:
            raise FailedPrecondition("this encoder reads queries and passages differently: name the role")
        return [RoleText(text, role) for text in super().in_role(items, role, prompts)]

    def size(self, item: str) -> int:
        """In UTF-8."""
        return bytes_of(item)

    def characters(self, item: RoleText) -> int:
        """Those of its text."""
        return len(item.text)

    def bound(self, items: Sequence[RoleText]) -> tuple[int, int]:
        """Tokens: as many as the role's texts are filled up to; otherwise at most one a byte, and no more
        than are read. Bytes: in UTF-8, or as Python keeps them."""
        lengths = [len(text) if text.isascii() else 4 * len(text) for text, _ in items]
        readings = [self._arrangers[role].reading for _, role in items]
        tokens = [
            reading.most if reading.fill is not None else min(length + SPECIAL_TOKENS, reading.most)
            for length, reading in zip(lengths, readings, strict=True)
        ]
        return sum(tokens), sum(lengths)

    def read(self, items: Sequence[RoleText], how: Truncate) -> list[ReadText]:
        """The arranged tokens of each text."""
        found: dict[int, ReadText] = {}
        for role, arrange in self._arrangers.items():
            places = [place for place, item in enumerate(items) if item.role == role]
            texts = [items[place].text for place in places]
            read = self._tokenizer.read(texts, how, arrange.room) if texts else []
            for place, tokens in zip(places, read, strict=True):
                found[place] = ReadText(arrange(tokens.ids), tokens.count, tokens.whole, role)
        return [found[place] for place in range(len(items))]

    def payloads(self, read: Sequence[ReadText], how: Truncate, which: Which) -> list[Payload]:
        """The ids of each text, and what each of them is for."""
        for row, each in enumerate(read if how == "none" else ()):
            room = self._arrangers[each.role].room
            if each.count > room:
                more = "" if each.whole else " or more"
                raise InvalidArgument(
                    f"{which(row)} has {each.count} tokens{more}, this encoder reads {room} of a "
                    f"{each.role}: shorten it, or let it be cut with truncate=END or START"
                )
        return [
            Payload(each.arrays, len(each.arrays["ids"]), b"".join(map(bytes, each.arrays.values())))
            for each in read
        ]


def bytes_of(text: str) -> int:
    """Its length in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
