"""Descriptions of Debian's packages: the short one is the query for the long one, in all available languages.

If apt's lists contain descriptions, as they may after `apt-get update`, there are tens of thousands;
otherwise these are only the descriptions of installed packages.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from trimtab_export.texts.domain import Pair

LISTS = Path("/var/lib/apt/lists")
STATUS = Path("/var/lib/dpkg/status")
LEAST_QUERY, LEAST_DOCUMENT = 3, 12  # words
# What distinguishes the packages of one program: the end of a short description, and of a long one.
KIND = re.compile(
    r"\s*[-(\[]\s*(?:dev|doc|lib|debug|common|data|runtime|shared|header|tool|python)\w*\b.*", re.I
)
PART = re.compile(r"\s*This package (?:contains|provides|includes|installs|is|depends)\b.*", re.S)


def find() -> Iterator[Pair]:
    lists = sorted(LISTS.glob("*_i18n_Translation-*")) if LISTS.is_dir() else []
    for path in lists or [STATUS]:
        language = path.name.rpartition("Translation-")[2][:2] if lists else "en"
        yield from of(path, language)


def of(path: Path, language: str) -> Iterator[Pair]:
    """The pairs of one list; none if it cannot be read."""
    try:
        records = path.read_text("utf-8").split("\n\n")
    except (OSError, UnicodeDecodeError):
        return
    for record in records:
        body = re.search(r"^Description(?:-[\w@]+)?: (.+)\n((?: .*\n?)+)", record, re.M)
        if body is None:
            continue
        query = KIND.sub("", body[1])
        lines = " ".join(line.strip() for line in body[2].splitlines() if line.strip() != ".")
        document = PART.sub("", lines)
        if len(document.split()) < LEAST_DOCUMENT:
            document = lines
        if len(query.split()) >= LEAST_QUERY and len(document.split()) >= LEAST_DOCUMENT:
            yield Pair(query, document, language)
