"""Sections of manuals by their titles: GNU's info files, Vim's help, Python's reference as in help()."""

import gzip
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from trimtab_export.texts.domain import Pair

INFO = Path("/usr/share/info")
VIM = Path("/usr/share/vim")
LEAST_DOCUMENT = 12  # words
MENU = re.compile(r"^\* Menu:.*", re.M | re.S)
RULED = re.compile(r"^(\S.{3,80})\n([*=\-~^\"])\2{3,}$", re.M)


def find() -> Iterator[Pair]:
    yield from _info()
    yield from _vim()
    yield from _python()


def _info() -> Iterator[Pair]:
    """A node's title with the manual's name is the query for its text."""
    for path in sorted(INFO.glob("*.info*.gz")) if INFO.is_dir() else ():
        manual = path.name.partition(".")[0]
        for node in _unzipped(path).split("\x1f\n")[1:]:
            title, ruled, text = _titled(node.partition("\n")[2])
            if ruled:
                yield from _pair(manual, re.sub(r"^[\d.A-Z]+ ", "", title), MENU.sub("", text))


def _vim() -> Iterator[Pair]:
    for path in sorted(VIM.glob("vim*/doc/*.txt")):
        for section in re.split(r"^[=-]{70,}$", _read(path), flags=re.M)[1:]:
            title, _, text = section.strip().partition("\n")
            words = re.sub(r"^[\d.]+ |\*\S+\*|~$", "", title)
            yield from _pair("vim", words, re.sub(r"[|*]", "", text))


def _python() -> Iterator[Pair]:
    for text in import_module("pydoc_data.topics").topics.values():
        found = [*RULED.finditer(text)]
        for number, heading in enumerate(found):
            end = found[number + 1].start() if number + 1 < len(found) else len(text)
            yield from _pair("Python", heading[1], text[heading.end() : end])


def _titled(text: str) -> tuple[str, bool, str]:
    heading = RULED.search(text)
    return (heading[1], True, text[heading.end() :]) if heading else ("", False, text)


def _pair(manual: str, title: str, text: str) -> Iterator[Pair]:
    if title.strip() and len(text.split()) >= LEAST_DOCUMENT:
        yield Pair(f"{manual}: {title.strip()}", text)


def _unzipped(path: Path) -> str:
    try:
        return gzip.decompress(path.read_bytes()).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
