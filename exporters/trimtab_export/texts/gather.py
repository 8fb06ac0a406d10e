"""Gathers the available kinds of texts: cleaned, of different lengths, in a fixed order, without overlaps."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trimtab_export.texts import (
    dictionary,
    licences,
    man_pages,
    manuals,
    packages,
    python_sources,
    readmes,
    translations,
)
from trimtab_export.texts.domain import Domain, Pair, hash_of

DOMAINS = (
    Domain("docstrings", "a docstring's first paragraph, for the rest", "train", python_sources.docstrings),
    Domain("code", "a docstring, for the function without it", "train", python_sources.code),
    Domain("readmes", "a package and a heading, for the section of its description", "train", readmes.find),
    Domain("man pages", "a page's name, for its description; several languages", "train", man_pages.pages),
    Domain("options", "what an option does, for what its page says", "train", man_pages.options),
    Domain("licences", "how a clause begins, for the rest", "train", licences.find),
    Domain("manuals", "a section's title, for the section", "choose", manuals.find),
    Domain("packages", "Debian's short descriptions, for the long ones", "judge", packages.find),
    Domain("dictionary", "a word, for its definitions", "judge", dictionary.find),
    Domain("translations", "a message in another language, for the English one", "judge", translations.find),
)
# The lengths of documents in characters, each with its share in percent: real texts have all lengths.
LENGTHS = ((400, 50), (150, 20), (1000, 20), (2400, 10))
LONGEST_QUERY = 300  # characters
FEWEST = 100  # pairs that make a domain
MOST = 20_000  # pairs of a domain
SAME = 60  # texts that begin with the same letters and digits, this many, count as one
WORDS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Found:
    """The texts of a domain: pairs in a fixed order that mixes their sources, each text once."""

    domain: Domain
    pairs: list[Pair]

    @property
    def name(self) -> str:
        return self.domain.name

    @property
    def texts(self) -> list[str]:
        """Both sides of the pairs, for training and calibration."""
        return [text for pair in self.pairs for text in pair[:2]]


def gather(domains: Sequence[Domain] = DOMAINS) -> list[Found]:
    """The available texts of each domain; domains with fewer than FEWEST pairs are left out.

    A text that is in two domains belongs to the first of them.
    """
    taken: set[str] = set()
    found = [Found(domain, _pairs(domain.find(), taken)) for domain in domains]
    return [each for each in found if len(each.pairs) >= FEWEST]


def describe(found: Sequence[Found], domains: Sequence[Domain] = DOMAINS) -> str:
    """One line per domain, for people: what is available, or that it is missing."""
    there = {each.name: each for each in found}
    lines = []
    for domain in domains:
        pairs = there[domain.name].pairs if domain.name in there else []
        languages = sorted({pair.language for pair in pairs})
        said = f"{len(pairs):>6} pairs, {' '.join(languages)}" if pairs else "     - not on this machine"
        lines.append(f"{domain.name:<14}{domain.role:<8}{domain.what:<64}{said}\n")
    return "".join(lines)


def key(text: str) -> str:
    """A key that is equal for texts that count as the same: their beginning, without case and punctuation."""
    return WORDS.sub("", unicodedata.normalize("NFKC", text[: 4 * SAME]).lower())[:SAME]


def _pairs(rows: Iterable[Pair], taken: set[str]) -> list[Pair]:
    cleaned = {
        Pair(_line(query)[:LONGEST_QUERY], _cut(document), language) for query, document, language in rows
    }
    pairs: list[Pair] = []
    for pair in sorted(cleaned, key=lambda each: (hash_of(each.query), each)):
        keys = {key(pair.query), key(pair.document)}
        if len(keys) == 2 and "" not in keys and not keys & taken and len(pairs) < MOST:
            taken |= keys
            pairs.append(pair)
    return pairs


def _line(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str) -> str:
    """A document on one line, cut at a length chosen by its hash."""
    line = _line(text)
    percent = hash_of(line) % 100
    for length, share in LENGTHS:
        if percent < share:
            return line[:length]
        percent -= share
    return line
