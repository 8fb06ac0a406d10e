"""Two kinds of texts from Python files: docstrings, and functions. The files are parsed and never run."""

import ast
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from trimtab_export.texts.domain import Pair

STANDARD = "the standard library"
# The packages that an export depends on, in two parts, so that no text is in both kinds.
DOCUMENTED = (STANDARD, "numpy", "scipy", "sklearn", "torch", "transformers")
PROGRAMMED = ("sympy", "networkx", "matplotlib", "huggingface_hub", "sentence_transformers", "fsspec", "PIL")
LEAST_QUERY, LEAST_DOCUMENT = 4, 12  # words
LEAST_LINES, MOST_LINES = 3, 60
MOST_FILES = 200  # of a package, spread over it
MOST_BYTES = 60_000  # of a file: longer ones take long and repeat themselves
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


def docstrings(packages: Sequence[str] = DOCUMENTED) -> Iterator[Pair]:
    """A docstring's first paragraph is the query, the rest of it the document."""
    for _, tree in _trees(packages):
        for node in ast.walk(tree):
            if isinstance(node, Definition) and (text := ast.get_docstring(node)):
                first, _, rest = text.partition("\n\n")
                if len(first.split()) >= LEAST_QUERY and len(rest.split()) >= LEAST_DOCUMENT:
                    yield Pair(first, rest)


def code(packages: Sequence[str] = PROGRAMMED) -> Iterator[Pair]:
    """A docstring's first paragraph is the query; the function's source without the docstring answers it."""
    for source, tree in _trees(packages):
        lines = source.splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = ast.get_docstring(node)
            if not text or len(node.body) < 2 or not LEAST_LINES <= len(_body(node, lines)) <= MOST_LINES:
                continue
            first = text.partition("\n\n")[0]
            if len(first.split()) >= LEAST_QUERY:
                head = lines[node.lineno - 1 : node.body[0].lineno - 1]
                yield Pair(first, "\n".join([*head, *_body(node, lines)]))


def _body(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> list[str]:
    """The lines after the docstring."""
    return lines[(node.body[0].end_lineno or 0) : node.end_lineno]


def _trees(packages: Sequence[str]) -> Iterator[tuple[str, ast.Module]]:
    for path in _files(packages):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = path.read_text("utf-8")
                yield source, ast.parse(source)
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue


def _files(packages: Sequence[str]) -> Iterator[Path]:
    for name in packages:
        for root in _roots(name):
            files = sorted(
                path
                for path in root.rglob("*.py")
                if not {"test", "tests", "site-packages"} & set(path.relative_to(root).parts)
                and path.stat().st_size <= MOST_BYTES
            )
            yield from files[:: max(1, -(-len(files) // MOST_FILES))]


def _roots(name: str) -> list[Path]:
    if name == STANDARD:
        return [Path(sysconfig.get_paths()["stdlib"])]
    spec = find_spec(name)
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
