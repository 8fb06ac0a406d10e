"""The texts that variants are made of, and those that judge them; never the same for both.

Kinds of text have roles (see `trimtab_export.texts`). Some *train*: healing and calibration read them. Some
*choose*: when to stop, what to leave out. The others *judge*: nothing was made or chosen by them, they are
left out whole. Where there is one kind alone, its held-out pairs judge, and the verdict is provisional.
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

# Of each set that judges. What is kept has a standard deviation over queries of some .15 for int8 and .3 for
# deep cuts: 800 give a 95% interval of +-.01 and +-.02. The more documents, the harder to find the right one.
QUERIES = 800
DOCUMENTS = 3000
YOUR_QUERIES, YOUR_DOCUMENTS = 500, 1000  # held out of the user's; what is beyond trains
CHARACTERS = 500_000  # of the documents of a set, so that long ones take no longer than many


@dataclass(frozen=True)
class Material:
    """What variants are made of and judged by.

    `kinds` train, the user's first; by `watched`, of a kind that chooses, training is watched; `judge` are
    whole kinds left out of both; `yours` are held-out pairs of the user's own. Where nothing was left out,
    `judge` is of a kind that was trained on.
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
    """From what the machine carries, and from files of pairs and of texts where they are given.

    The user's pairs beyond the held-out ones train, as do the user's texts, before all others. Raises
    ExportError where a file cannot be read, or gives too few pairs to tell anything.
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
    """Which kinds of text train, choose and judge: as they are declared, where there are enough.

    Judges come first, since nothing else says what is kept elsewhere: where none of the declared ones is
    there, those that would choose judge, or the last that would train, as long as one is left to train.
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
    """Texts that are not taken; then they are."""
    for text in texts:
        start = key(text)
        if start and start not in taken:
            taken.add(start)
            yield text
