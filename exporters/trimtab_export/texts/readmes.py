"""Descriptions of installed packages: their sections, by heading."""

import re
from collections.abc import Iterator
from importlib import metadata

from trimtab_export.texts.domain import Pair

LEAST_DOCUMENT = 12  # words
# A heading in Markdown, or in reStructuredText: a line with a rule under it.
HEADING = re.compile(r"^#{1,4} +(?P<md>\S.{0,80}?) *#*$|^(?P<rst>\S.{1,80})\n(?:={3,}|-{3,}|~{3,})$", re.M)
MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|<[^>\n]{1,300}>|^\.\. .*$|`_|[`*|]|https?://\S+", re.M)


def find() -> Iterator[Pair]:
    """The package and a heading are the query for a section; its summary, for the description's beginning."""
    for distribution in sorted(metadata.distributions(), key=lambda each: each.metadata["Name"] or ""):
        about = distribution.metadata.json
        name, text = about.get("name"), str(about.get("description", ""))
        if not name or not text.strip():
            continue
        start, query = 0, str(about.get("summary", ""))
        for heading in HEADING.finditer(text):
            yield from _pair(query, text[start : heading.start()])
            start, query = heading.end(), f"{name}: {heading['md'] or heading['rst']}"
        yield from _pair(query, text[start:])


def _pair(query: str, section: str) -> Iterator[Pair]:
    query, document = (MARKUP.sub(lambda found: found[1] or " ", text) for text in (query, section))
    if len(query.split()) >= 2 and len(document.split()) >= LEAST_DOCUMENT:
        yield Pair(query, document)
