"""Real texts on every machine with the exporters: docstrings of NumPy, SciPy and the standard library.

A pair is the first sentence of a docstring, as the query, and what follows it, as the document.
"""

import importlib
import inspect
import pkgutil
import random
import re
import warnings
from functools import cache
from types import ModuleType

PACKAGES = ("numpy", "scipy", "asyncio", "email", "logging", "unittest", "urllib", "http", "concurrent")
MODULES = (
    "argparse",
    "ast",
    "collections",
    "datetime",
    "decimal",
    "difflib",
    "fractions",
    "functools",
    "ipaddress",
)
MODULES += (
    "pathlib",
    "pickle",
    "random",
    "shutil",
    "socket",
    "sqlite3",
    "statistics",
    "string",
    "subprocess",
)
MODULES += ("tarfile", "tempfile", "textwrap", "threading", "tkinter", "typing", "uuid", "zipfile", "turtle")
LONGEST = 150  # characters of a document
SENTENCE = re.compile(r"(?<=[.:])\s")
WORDS = re.compile(r"[A-Za-z]{2,}")


@cache
def pairs() -> list[tuple[str, str]]:
    """(query, document), each text once, in a fixed random order."""
    found: dict[str, str] = {}
    for name in (*PACKAGES, *MODULES):
        for module in _modules(name):
            for _, value in sorted(vars(module).items(), key=lambda item: item[0]):
                for each in (value, *(vars(value).values() if inspect.isclass(value) else ())):
                    text = inspect.getdoc(each) if callable(each) else None
                    first, _, rest = (text or "").partition("\n\n")
                    query, body = " ".join(first.split()), " ".join(rest.split())
                    if 4 <= len(WORDS.findall(query)) <= 25 and len(WORDS.findall(body[:LONGEST])) >= 12:
                        found.setdefault(query, body[:LONGEST])
    rows = list({document: (query, document) for query, document in found.items()}.values())
    random.Random(0).shuffle(rows)
    return rows


def _modules(name: str) -> list[ModuleType]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(name)
        names = [each.name for each in pkgutil.iter_modules(getattr(module, "__path__", []))]
        names = [
            each
            for each in names
            if not each.startswith("_") and each not in {"tests", "testing", "conftest"}
        ]
        found = [module]
        for each in sorted(names):
            try:
                found.append(importlib.import_module(f"{name}.{each}"))
            except ImportError:
                continue
        return found
