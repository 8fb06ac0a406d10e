"""Real English texts that every machine with the exporter has: the docstrings of the packages it stands on.

A docstring's first line asks, the rest of it answers. The files are parsed, never run.
"""

import ast
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("numpy",)
LEAST_QUERY, LEAST_DOCUMENT = 4, 12  # words
LONGEST = 400  # characters of a document: what is beyond says little more of it
MOST_FILES = 500  # of a package, spread over it


@cache
def pairs(longest: int = LONGEST) -> list[tuple[str, str]]:
    """(first line, rest) of docstrings, each once, in a fixed order that mixes the packages.

    Of the rest the first `longest` characters.
    """
    found: dict[str, str] = {}
    for path in _files():
        for text in _docstrings(path):
            first, _, rest = text.partition("\n\n")
            query = " ".join(first.split())
            document = " ".join(rest.split())[:longest]
            if len(query.split()) >= LEAST_QUERY and len(document.split()) >= LEAST_DOCUMENT:
                found.setdefault(document, query)
    unique = {query: document for document, query in found.items()}
    # By their content, so that the order does not follow the packages.
    return sorted(unique.items(), key=lambda pair: (hash_of(pair[0]), pair))


def hash_of(text: str) -> int:
    """A number that scatters texts, the same on every machine."""
    return zlib.crc32(text.encode())


def _files() -> Iterator[Path]:
    standard = Path(sysconfig.get_paths()["stdlib"])
    roots = [standard]
    for name in PACKAGES:
        spec = find_spec(name)
        roots += [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for root in roots:
        files = sorted(
            path
            for path in root.rglob("*.py")
            if not {"test", "tests", "site-packages"} & set(path.relative_to(root).parts)
        )
        yield from files[:: max(1, len(files) // MOST_FILES)]


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text("utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node)
            if text:
                yield text
