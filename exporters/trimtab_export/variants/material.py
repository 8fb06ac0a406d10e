"""Gathers the texts that variants are made of, and those that judge them; never the same for both.

Kinds of text have roles (see `trimtab_export.texts`). Some *train*: healing and calibration read them. Some
*choose*: when to stop, what to leave out. The others *judge*: they are left out entirely, and nothing is made
or chosen by them. If there is only one kind, its held-out pairs judge, and the verdict is provisional.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from trimtab.kinds import JudgedBy
from trimtab_export.texts.domain import Pair, Role
from trimtab_export.texts.gather import Found, key
from trimtab_export.texts.gather import gather as texts_at_hand
from trimtab_export.variants import retrieval
from trimtab_export.variants.retrieval import Pairs

# Of each judging set. Over queries, the quality kept has a standard deviation of some .15 for int8 and .3 for
# deep cuts: 800 queries give a 95% interval of +-.01 and +-.02. More documents make the right one harder to
# find.
QUERIES = 800
DOCUMENTS = 3000
YOUR_QUERIES, YOUR_DOCUMENTS = 500, 1000  # held out of the user's pairs; the rest trains
CHARACTERS = 500_000  # of a set's documents, so that a few long ones do not take too long


@dataclass(frozen=True)
class Material:
    """What variants are made of and judged by.

    `kinds` train, the user's first; `watched`, of a kind that chooses, follows the training; `judge` are
    whole kinds left out of both; `yours` are held-out pairs of the user. If nothing was left out, `judge` is
    of a kind that was trained on.
    """

    kinds: list[list[str]]
    watched: Pairs | None
    judge: tuple[Pairs, ...]
    yours: tuple[Pairs, ...] = ()

    @property
    def judged_by(self) -> tuple[Pairs, ...]:
        """All sets that the report cards show."""
        return *self.yours, *self.judge


def gather(pairs: Path | None, texts: Path | None) -> Material:
    """Gather from what the machine has, and from files of pairs and texts if they are given.

    The user's pairs beyond the held-out ones train, as do the user's texts, before all others. Raises
    ExportError if a file cannot be read, or has too few pairs to judge by.
    """
    roles = shared_out(texts_at_hand())
    given = retrieval.lines(texts) if texts is not None else []
    own = retrieval.load(pairs) if pairs is not None else retrieval.split(given)
    yours: tuple[Pairs, ...] = ()
    if (path := pairs or texts) is not None:
        name = path.name if pairs is not None else f"pairs made of {path.name}"
        yours = (replace(retrieval.held_out(name, own, YOUR_QUERIES, YOUR_DOCUMENTS), kind="yours"),)
    watched = next((_set(each, "left out") for each in roles["choose"]), None)
    judge = tuple(_set(each, "left out") for each in roles["judge"])
    if not judge:
        judge = tuple(_set(each, "trained on") for each in roles["train"][:1])
    held = (*yours, *judge, *([watched] if watched is not None else []))
    taken = {key(text) for each in held for text in each.texts}
    more = chain.from_iterable(own) if pairs is not None else ()
    kinds = [list(_apart(kind, taken)) for kind in (given, more, *(each.texts for each in roles["train"]))]
    return Material([kind for kind in kinds if kind], watched, judge, yours)


def shared_out(found: Sequence[Found]) -> dict[Role, list[Found]]:
    """Which kinds of text train, choose and judge: as declared, if there are enough.

    Judges come first, since nothing else tells what is kept on other texts: if none of the declared judges is
    there, the kinds that would choose judge instead, or the last that would train, as long as one is left to
    train.
    """
    roles: dict[Role, list[Found]] = {"train": [], "choose": [], "judge": []}
    for each in found:
        roles[each.domain.role].append(each)
    if not roles["judge"]:
        roles["judge"], roles["choose"] = roles["choose"], []
    if not roles["train"]:
        givers = roles["choose"] or roles["judge"]
        roles["train"] = [givers.pop(0)] if givers else []
    if not roles["judge"] and len(roles["train"]) > 1:
        roles["judge"] = [roles["train"].pop()]
    return roles


def _set(found: Found, kind: JudgedBy) -> Pairs:
    """The first pairs of a domain, in their fixed order."""
    rows: list[Pair] = []
    characters = 0
    for pair in found.pairs[:DOCUMENTS]:
        characters += len(pair.document)
        if characters > CHARACTERS and len(rows) >= retrieval.FEWEST:
            break
        rows.append(pair)
    languages = tuple(sorted({pair.language for pair in rows[:QUERIES]}))
    queries = [pair.query for pair in rows[:QUERIES]]
    return Pairs(found.name, queries, [pair.document for pair in rows], kind, languages)


def _apart(texts: Iterable[str], taken: set[str]) -> Iterator[str]:
    """The texts that are not taken yet, marking them as taken."""
    for text in texts:
        start = key(text)
        if start and start not in taken:
            taken.add(start)
            yield text
