"""Kinds of text that the machine carries: what is made of them, and what is left out."""

import gzip
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from trimtab.cli import main as cli_main
from trimtab_export.texts import (
    dictionary,
    gather,
    licences,
    man_pages,
    manuals,
    packages,
    python_sources,
    readmes,
    translations,
)
from trimtab_export.texts.domain import Domain, Pair

LONG = "and so on, word for word, until there are enough words for a document of some length"


def domain(name: str, *pairs: tuple[str, str], role: str = "train") -> Domain:
    return Domain(name, "for tests", role, lambda: [Pair(*each) for each in pairs])  # type: ignore[arg-type]


def numbered(word: str, count: int) -> list[tuple[str, str]]:
    return [(f"what is {word}{number}", f"{word}{number} is this {LONG}") for number in range(count)]


def test_a_text_is_in_one_domain_alone_once_and_in_a_fixed_order() -> None:
    first = domain("first", *numbered("a", 150), *numbered("a", 150))
    again = [("WHAT is a7?", "something else " + LONG), ("unheard of", f"A7 is this, {LONG}!")]
    second = domain("second", *again, *numbered("b", 150))
    one, two = gather.gather([first, second])
    assert (len(one.pairs), len(two.pairs)) == (150, 150)
    assert not {gather.key(text) for text in one.texts} & {gather.key(text) for text in two.texts}
    backwards = domain("first", *reversed(numbered("a", 150)))
    assert gather.gather([backwards])[0].pairs == one.pairs
    assert one.pairs != sorted(one.pairs)


def test_what_is_not_on_the_machine_is_left_out_and_named() -> None:
    there, few, none = domain("there", *numbered("a", 150)), domain("few", *numbered("b", 5)), domain("none")
    found = gather.gather([none, few, there])
    assert [each.name for each in found] == ["there"]
    said = gather.describe(found, [none, few, there]).splitlines()
    assert ["not on this machine" in line for line in said] == [True, True, False]
    assert "150 pairs, en" in said[2]


def test_documents_are_of_unlike_lengths() -> None:
    rows = [(f"query {number}", f"{number} " + "many words " * 400) for number in range(400)]
    (found,) = gather.gather([domain("long", *rows)])
    lengths = [len(pair.document) for pair in found.pairs]
    assert {longest for longest, _ in gather.LENGTHS} == set(lengths)


def test_python_texts_are_everywhere_and_none_is_in_two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_sources, "MOST_FILES", 15)
    found = gather.gather([each for each in gather.DOMAINS if each.name in {"docstrings", "code", "readmes"}])
    assert [each.name for each in found] == ["docstrings", "code", "readmes"]
    assert all(len(each.pairs) > 100 for each in found)
    texts = [text for each in found for text in each.texts]
    assert len({gather.key(text) for text in texts}) == len(texts)


PAGE = r""".TH HOSTNAME 1
.SH NAME
hostname \- show or set the system's \fIhost name\fR
.SH SYNOPSIS
.B hostname
.SH DESCRIPTION
.B Hostname
is used to display the system's DNS name, and to display or set its
.BR host name ()
or NIS domain name \(em as it is known to the kernel.
.nf
  an example
.fi
.SH OPTIONS
.TP
.B \-a, \-\-alias
Display the alias name of the host (if used).
"""
INFO = """This is it.
\x1f
File: made.info,  Node: Invoking

2.1 Invoking the thing
======================

The thing is invoked by its name and whatever options it understands, in any order that you like.

* Menu:

* Another::
\x1f
File: made.info,  Node: Short

3 Short
*******

Too short.
"""
STATUS = f"""Package: thing
Description: does the thing well (development files)
 The thing is done here, {LONG}.
 .
 This package contains the headers.

Package: other
Description: two words
 Whatever it is.
"""


def mo(path: Path, messages: dict[str, str]) -> None:
    """A compiled catalogue of gettext."""
    rows = sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    keys, values = ([each.encode() for each in column] for column in zip(*rows, strict=True))
    at, tables = 28 + 16 * len(rows), b""
    for texts in (keys, values):
        for text in texts:
            tables += struct.pack("<II", len(text), at)
            at += len(text) + 1
    head = struct.pack("<7I", 0x950412DE, 0, len(rows), 28, 28 + 8 * len(rows), 0, 0)
    path.parent.mkdir(parents=True)
    path.write_bytes(head + tables + b"".join(text + b"\0" for text in [*keys, *values]))


def test_pages_manuals_and_lists_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("man1", "fr/man1"):
        (tmp_path / "man" / name).mkdir(parents=True)
        with gzip.open(tmp_path / "man" / name / "hostname.1.gz", "wb") as stream:
            stream.write(PAGE.encode())
    monkeypatch.setattr(man_pages, "ROOT", tmp_path / "man")
    english, french = man_pages.pages()
    assert english.query == "hostname - show or set the system's host name"
    assert english.document == (
        "Hostname is used to display the system's DNS name, and to display or set its hostname() or NIS "
        "domain name -- as it is known to the kernel."
    )
    assert (french.language, french.document) == ("fr", english.document)
    assert list(man_pages.options()) == [
        Pair("What does -a, --alias do in hostname?", "Display the alias name of the host (if used).")
    ]

    (tmp_path / "info").mkdir()
    with gzip.open(tmp_path / "info" / "made.info.gz", "wb") as stream:
        stream.write(INFO.encode())
    monkeypatch.setattr(manuals, "INFO", tmp_path / "info")
    monkeypatch.setattr(manuals, "VIM", tmp_path / "none")
    (node,) = [pair for pair in manuals.find() if not pair.query.startswith("Python")]
    assert node.query == "made: Invoking the thing"
    assert node.document.strip().endswith("in any order that you like.")

    (tmp_path / "status").write_text(STATUS)
    assert [(pair.query, pair.document.strip()) for pair in packages.of(tmp_path / "status", "en")] == [
        ("does the thing well", f"The thing is done here, {LONG}.")
    ]

    mo(tmp_path / "locale" / "pt_BR" / "LC_MESSAGES" / "made.mo", {
        "a file with that name exists": "já existe um ficheiro com esse nome", "no": "não",
    })  # fmt: skip
    monkeypatch.setattr(translations, "ROOT", tmp_path / "locale")
    assert list(translations.find()) == [
        Pair("já existe um ficheiro com esse nome", "a file with that name exists", "pt")
    ]


@pytest.mark.parametrize(
    ("module", "names", "find"),
    [
        (man_pages, ("ROOT",), man_pages.pages),
        (man_pages, ("ROOT",), man_pages.options),
        (packages, ("LISTS", "STATUS"), packages.find),
        (translations, ("ROOT",), translations.find),
        (dictionary, ("WORDNET",), dictionary.find),
    ],
)
def test_a_machine_without_them_gives_none(
    module: object, names: tuple[str, ...], find: Callable[[], Iterable[Pair]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in names:
        monkeypatch.setattr(module, name, tmp_path / "nothing")
    monkeypatch.setattr(dictionary, "PACKAGE", "no-such-package")
    assert list(find()) == []


def test_functions_are_without_the_docstring_that_asks_for_them() -> None:
    pairs = list(python_sources.code(("fsspec",)))
    assert len(pairs) > 20
    for query, source, _ in pairs:
        assert query not in source
        assert source.lstrip().startswith(("def ", "async def ", "class ", "@"))


def test_readmes_and_licences_are_found() -> None:
    headed = [pair for pair in readmes.find() if ": " in pair.query]
    assert len(headed) > 300
    assert sum(1 for _ in licences.find()) > 100


def test_the_command_lists_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gather, "gather", lambda: [gather.Found(gather.DOMAINS[0], [Pair("q", "d", "fr")])])
    with pytest.raises(SystemExit) as ended:
        cli_main(["export", "--list-texts"])
    assert ended.value.code == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("docstrings")
    assert "1 pairs, fr" in first
    assert all("not on this machine" in line for line in rest)
