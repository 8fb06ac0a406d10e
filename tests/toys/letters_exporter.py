"""The toy kind of input in the exporter."""

from pathlib import Path
from typing import ClassVar

from trimtab.artifacts.manifest import Input
from trimtab_export.kinds.making import InputMaker
from trimtab_export.source import Source

SHIFT = 600  # the first letter's token: beyond the vocabulary for the last ones


class LettersMaker(InputMaker):
    """Letters, whose tokens follow one another in the encoder's vocabulary."""

    kind: ClassVar[str] = "letters"

    def declare(self, source: Source, folder: Path) -> Input:
        return Input(
            name="letters", kind=self.kind, processor=None, most_units=source.max_tokens,
            settings={"shift": SHIFT},
        )  # fmt: skip


LETTERS = LettersMaker()
