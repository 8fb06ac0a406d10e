"""Clauses of licences: a clause's heading, or its beginning, is the query for the rest."""

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from trimtab_export.texts.domain import Pair

COMMON = Path("/usr/share/common-licenses")
DOCUMENTS = Path("/usr/share/doc")
LEAST_DOCUMENT = 20  # words
ASKED = 10  # words of a clause without a heading that make the query
FIELDS = re.compile(r"\s*(?:Files|Copyright|Format|Upstream[\w-]*|Source|Comment|License)\b.*:|.*\(c\)", re.I)
NAMES = re.compile(r"(?:licen[cs]e|copying|notice|eula)", re.I)


def find() -> Iterator[Pair]:
    for text in _files():
        for clause in re.split(r"\n\s*\n", re.sub(r"^[ .#*/;]+", "", text, flags=re.M)):
            words = clause.split()
            if len(words) >= LEAST_DOCUMENT + ASKED and not FIELDS.match(clause):
                yield Pair(" ".join(words[:ASKED]), " ".join(words[ASKED:]))


def _files() -> Iterator[str]:
    paths = [*sorted(COMMON.glob("*")), *sorted(DOCUMENTS.glob("*/copyright"))]
    for distribution in metadata.distributions():
        paths += [Path(str(file.locate())) for file in distribution.files or () if NAMES.match(file.name)]
    for path in paths:
        try:
            if path.suffix not in {".py", ".so"} and path.is_file():
                yield path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
