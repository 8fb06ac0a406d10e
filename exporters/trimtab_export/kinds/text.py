"""Text: the source's tokenizer."""

from pathlib import Path
from typing import ClassVar

from trimtab.artifacts.manifest import Input
from trimtab_export import write
from trimtab_export.kinds.making import InputMaker
from trimtab_export.source import Source

TOKENIZER = "tokenizer.json"


class TextMaker(InputMaker):
    """Texts, as the tokens that the encoder reads."""

    kind: ClassVar[str] = "text"

    def declare(self, source: Source, folder: Path) -> Input:
        """The input; writes tokenizer.json."""
        tokenizer = folder / TOKENIZER
        tokenizer.write_text(source.tokenizer.json, "utf-8")
        return Input(
            name="text",
            kind=self.kind,
            processor=write.entry(folder, tokenizer),
            most_units=source.max_tokens,
            prompts=source.prompts,
            settings={"pad_id": source.tokenizer.pad_id},
        )
