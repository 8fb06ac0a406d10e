"""Manual pages: the line with a page's name is the query for its description, in all available languages.

Also their lists of options: a question about what an option does is the query for its description.
"""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from trimtab_export.texts.domain import Pair

ROOT = Path("/usr/share/man")
LEAST_DOCUMENT = 12  # words
LEAST_OPTION = 5
UNSPACED = {"ja", "zh", "ko"}
MOST_OF_A_KIND = 12  # pages whose names begin the same, such as those of one program's subcommands
MOST_PAGES = 3000
MOST_BYTES = 400_000
TEXT_MACROS = {
    "B", "I", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB", "Nm", "Ar", "Fl", "Pa", "Xr", "Ev", "Cm", "Em",
    "Sy", "Dv", "Fn", "Ic", "Va", "Nd", "Ql", "Dq", "Sq", "Li", "Pq",
}  # fmt: skip
FONTS = re.compile(r"\\f(?:\[[^\]]*\]|\(..|.)|\\s[-+]?\d")
NAMED = {
    "-": "-", "e": "\\", "(aq": "'", "(lq": '"', "(rq": '"', "(oq": "'", "(cq": "'", "(dq": '"', "(em": "--",
    "(en": "-", "(bu": "*", "(co": "(C)", "(ha": "^", "(ti": "~", "~": " ", " ": " ", "(ga": "`", "(hy": "-",
}  # fmt: skip
ESCAPE = re.compile(r"\\(\(..|\[[^\]]*\]|\*\(..|\*\[[^\]]*\]|\*.|.)")


def pages() -> Iterator[Pair]:
    """`name - what it is` is the query for the beginning of what follows the synopsis, or of the longest
    section."""
    for path, language in _paths():
        sections = _sections(path)
        name = next(iter(sections), None)
        query = " ".join(sections[name]) if name else ""
        said, dash, what = query.partition(" - ")
        if not dash or len(what.split()) < 2 or len(query) > 300:
            continue
        rest = [text for heading, lines in sections.items() if heading != name and (text := " ".join(lines))]
        described = _described(sections) or max(rest, key=len, default="")
        words = len(described) // 3 if language in UNSPACED else len(described.split())
        if words >= LEAST_DOCUMENT:
            yield Pair(f"{said} - {what}", described, language)


def options() -> Iterator[Pair]:
    """A question for each entry in the lists of options of English pages."""
    for path, language in _paths():
        if language != "en" or path.parent.name not in {"man1", "man8"}:
            continue
        page = path.name.partition(".")[0]
        for tag, text in _entries(_read(path)):
            if tag.startswith("-") and len(text.split()) >= LEAST_OPTION:
                yield Pair(f"What does {tag} do in {page}?", text)


def _paths() -> Iterator[tuple[Path, str]]:
    """Pages and their languages, with a limit on pages whose names begin the same."""
    for language, root in [
        ("en", ROOT),
        *((path.name[:2], path) for path in sorted(ROOT.glob("[a-z][a-z]*"))),
    ]:
        if root != ROOT and (root.name.startswith("man") or not root.is_dir()):
            continue
        kinds: dict[str, int] = {}
        found = []
        for path in sorted(root.glob("man[1-8]/*")):
            kind = re.split(r"[-_.:]", path.name)[0]
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= MOST_OF_A_KIND and not path.is_symlink():
                found.append(path)
        yield from ((path, language) for path in found[:: max(1, -(-len(found) // MOST_PAGES))])


def _read(path: Path) -> list[str]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            text = stream.read(MOST_BYTES).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return []
    return text.splitlines()


def _sections(path: Path) -> dict[str, list[str]]:
    """The lines of text by section heading, in order."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    skipping = False
    for line in _read(path):
        macro, words = _macro(line)
        if macro in {"SH", "Sh"}:
            lines = found.setdefault(_plain(words).strip('"'), [])
        elif macro in {"nf", "EX", "Bd", "TS"}:
            skipping = True
        elif macro in {"fi", "EE", "Ed", "TE"}:
            skipping = False
        elif skipping:
            continue
        elif macro == "Nd":
            lines.append(f"- {_plain(words)}")
        elif macro is None or macro in TEXT_MACROS:
            lines.append(_text(macro, words))
    return found


def _described(sections: dict[str, list[str]]) -> str:
    """The third section, in any language, if there is a synopsis: by custom it is the description."""
    headings = [heading for heading in sections if " ".join(sections[heading]).strip()]
    for heading in headings[1:]:
        if heading.upper().startswith(("DESCRI", "BESCHREIBUNG", "OPIS", "ОПИСАНИЕ", "説明")):
            return " ".join(sections[heading])
    return ""


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Tags of .TP and .IP with the text that follows them."""
    tag, wants_tag = "", False
    text: list[str] = []
    for line in lines:
        macro, words = _macro(line)
        if macro in {"TP", "IP", "SH", "Sh", "SS", "PP", "P", "LP", "TQ"}:
            if tag and text:
                yield tag, " ".join(text)
            tag, text, wants_tag = "", [], macro == "TP"
            if macro == "IP":
                tag = _plain(words.split('" ')[0]).strip(' "')
        elif macro is None or macro in TEXT_MACROS:
            said = _text(macro, words)
            if wants_tag:
                tag, wants_tag = said, False
            else:
                text.append(said)
    if tag and text:
        yield tag, " ".join(text)


def _macro(line: str) -> tuple[str | None, str]:
    """The macro of a line, None for a line of text, and its words."""
    if not line.startswith((".", "'")):
        return None, line
    macro, _, words = line[1:].strip().partition(" ")
    return (macro if macro and not macro.startswith('\\"') else ""), words


def _text(macro: str | None, words: str) -> str:
    if macro in {"BR", "RB", "BI", "IB", "IR", "RI"}:  # words in alternating fonts, with no spaces between
        return "".join(_plain(each.strip('"')) for each in re.findall(r'"[^"]*"|\S+', words))
    return _plain(words if macro is None else words.replace('"', ""))


def _plain(text: str) -> str:
    return ESCAPE.sub(lambda found: NAMED.get(found[1], ""), FONTS.sub("", text))
