"""The toy kind of input in the server: an item is bytes, and needs no processor."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tests.toys.letters_client import Letters
from trimtab.artifacts.manifest import Input
from trimtab.errors import InvalidArgument
from trimtab.inputs.graph import Tried
from trimtab.kinds import Truncate
from trimtab_server.engine.batch import Payload
from trimtab_server.inputs.reader import ItemReader, Which


class LettersReader(ItemReader):
    """Reads at most so many letters of an item."""

    form: ClassVar[str] = "image"

    def __init__(self, most: int, shift: int) -> None:
        self._most = most
        self._shift = shift

    @classmethod
    def open(cls, declared: Input, content: bytes, name: str) -> "LettersReader":
        return cls(declared.most_units, declared.settings["shift"])

    def graph_input(self, names: Sequence[str], tried: Tried) -> Letters:
        return Letters(tuple(names), tried.fewest, self._shift)

    def prompted(self, items: Sequence[bytes], prompt: str) -> Sequence[bytes]:
        return [prompt.encode() + item for item in items]

    def size(self, item: bytes) -> int:
        return len(item)

    def characters(self, item: bytes) -> int:
        return len(item)

    def bound(self, items: Sequence[bytes]) -> tuple[int, int]:
        return sum(min(len(item), self._most) for item in items), sum(map(len, items))

    def read(self, items: Sequence[bytes], how: Truncate) -> list[bytes]:
        return [item[-self._most :] if how == "start" else item[: self._most] for item in items]

    def payloads(self, read: Sequence[bytes], how: Truncate, which: Which) -> list[Payload]:
        for row, item in enumerate(read):
            if not item:
                raise InvalidArgument(f"{which(row)} has no letters: send at least one")
        return [Payload({"letters": np.frombuffer(item, np.uint8)}, len(item), item) for item in read]
