"""Text: the source's tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from trimtab.artifacts.manifest import Input
from trimtab_export import sentences, write
from trimtab_export.kinds.making import InputMaker
from trimtab_export.source import Source
from trimtab_export.tokens import Collates, Collator

TOKENIZER = "tokenizer.json"


class TextMaker(InputMaker):
    """Texts, as the tokens that the encoder reads."""

    kind: ClassVar[str] = "text"

    def declare(self, source: Source, folder: Path) -> Input:
        """The input; writes tokenizer.json."""
        tokenizer = folder / TOKENIZER
        tokenizer.write_text(source.tokenizer.json, "utf-8")
        return Input(
            name=self.kind,
            kind=self.kind,
            processor=write.entry(folder, tokenizer),
            most_units=source.max_tokens,
            prompts=source.prompts,
            settings={
                "pad_id": source.tokenizer.pad_id,
                **{role: msgspec.to_builtins(reading) for role, reading in source.readings.items()},
            },
        )

    def collator(self, source: Source) -> Collates:
        """With the server's own code."""
        return Collator(source.tokenizer, source.max_tokens, source.prompts, source.readings)

    def samples(self, count: Callable[[Any], int], most: int) -> list[Any]:
        """The shipped texts, and one that fills `most`."""
        return [*sentences.load(), sentences.of_length(most, count)]
