"""Real texts on every machine with the exporters: docstrings of NumPy, SciPy and the standard library.

A pair is the first paragraph of a docstring, as the query, and what follows it, as the document. The files
are parsed, never run.
"""

import ast
import random
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

LONGEST = 150  # characters of a document
FILES = 200


@cache
def pairs() -> list[tuple[str, str]]:
    """(query, document), each text once, in a fixed random order."""
    found: dict[str, str] = {}
    for text in _docstrings():
        first, _, rest = text.partition("\n\n")
        query, document = " ".join(first.split()), " ".join(rest.split())[:LONGEST]
        if 4 <= len(query.split()) <= 25 and len(document.split()) >= 12:
            found.setdefault(document, query)
    rows = list({query: (query, document) for document, query in found.items()}.values())
    random.Random(0).shuffle(rows)
    return rows


def _docstrings() -> Iterator[str]:
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    for name in ("numpy", "scipy"):
        spec = find_spec(name)
        roots += [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    for root in roots:
        parts = {path: set(path.relative_to(root).parts) for path in root.rglob("*.py")}
        files = sorted(path for path in parts if not {"tests", "test", "site-packages"} & parts[path])
        for path in random.Random(0).sample(files, min(len(files), FILES)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    yield ast.get_docstring(node) or ""
