"""Which texts are measured with: none may need a network."""

import json
import random
from pathlib import Path

from bench import data
from trimtab_export.texts import python_sources

FEWEST = 2000  # of docstrings


def chosen(folder: Path) -> tuple[str, str]:
    """A file of pairs of short and long texts, and what they are. SystemExit if there are too few."""
    if data.CACHE.exists():
        return str(data.CACHE), "descriptions of Debian's packages"
    path = folder / "docstrings.jsonl"
    if not path.exists():
        pairs = docstrings()
        if len(pairs) < FEWEST:
            raise SystemExit(
                f"only {len(pairs)} texts here: install trimtab[export], whose docstrings are used"
            )
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        partial.rename(path)
    return str(path), "docstrings of installed packages"


def docstrings() -> list[tuple[str, str]]:
    """(first paragraph, the rest) of docstrings, each text once, in a fixed random order."""
    found: dict[str, str] = {}
    for pair in python_sources.docstrings():
        found.setdefault(" ".join(pair.query.split()), " ".join(pair.document.split()))
    rows = list({long: (short, long) for short, long in found.items()}.values())
    random.Random(0).shuffle(rows)
    return rows
