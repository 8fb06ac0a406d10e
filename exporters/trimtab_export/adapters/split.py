"""Splits texts for fitting, choosing a rung, and judging it. No text is used for two of these."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.errors import AdapterError
from trimtab_export.adapters.inputs import Query, RelevantPair

SHARE = 0.4  # of the pairs, for choosing; as many again for judging
MOST_JUDGED = 2000  # queries of either kind
FEWEST_JUDGED = 100


@dataclass(frozen=True, slots=True)
class HeldOutQueries:
    """Held-out queries, each with the documents that answer it, by their row in the index."""

    queries: list[Query]
    right: list[list[int]]


@dataclass(frozen=True, slots=True)
class Split:
    """Texts and queries by use.

    documents: the index to search. fit_documents: the rows of it that may be used for fitting.
    fit_right: the rows that answer each of fit_queries; empty if none is known.
    """

    documents: list[str]
    fit_documents: list[int]
    fit_queries: list[Query]
    fit_right: list[list[int]]
    select: HeldOutQueries
    test: HeldOutQueries


def same(text: str) -> str:
    """A key that is equal for texts that read the same."""
    return " ".join(text.casefold().split())


def unique(texts: Sequence[str]) -> list[str]:
    """Each text once, in order; the first of texts that read the same."""
    return list({same(text): text for text in reversed(texts)}.values())[::-1]


def by_pairs(
    texts: Sequence[str],
    queries: Sequence[Query],
    pairs: Sequence[RelevantPair],
    documents: int,
    seed: int = 0,
) -> Split:
    """Split by pairs: some select, some test, the rest fit.

    The index holds the documents of the judged pairs, then those of the rest, then texts, up to `documents`.
    Queries that share a document stay together. AdapterError if too few pairs remain for judging.
    """
    answers: dict[str, tuple[Query, list[str]]] = {}
    for pair in pairs:
        answers.setdefault(same(pair.query.text), (pair.query, []))[1].append(pair.document)
    names = sorted(answers)
    order = [names[number] for number in np.random.default_rng(seed).permutation(len(names))]
    size = min(MOST_JUDGED, int(len(order) * SHARE))
    test, select, rest = order[:size], order[size : 2 * size], order[2 * size :]
    judged_twice = {same(document) for name in test for document in answers[name][1]}
    select = [name for name in select if not any(same(each) in judged_twice for each in answers[name][1])]
    if min(len(select), len(test)) < FEWEST_JUDGED:
        raise AdapterError(
            f"the pairs have {len(order)} different queries, which leaves {len(select)} to choose by and "
            f"{len(test)} to judge by; at least {FEWEST_JUDGED} of each are needed. Give "
            f"{int(np.ceil(FEWEST_JUDGED / SHARE))} or more pairs with different documents, or no pairs for "
            "a provisional verdict"
        )
    answering = unique([each for name in (*test, *select) for each in answers[name][1]])
    known = {same(text) for text in answering}
    spare = [name for name in rest if not any(same(each) in known for each in answers[name][1])]
    learned = [each for name in spare for each in answers[name][1]]
    others = [text for text in unique([*learned, *texts]) if same(text) not in known]
    corpus = [*answering, *others[: max(0, documents - len(answering))]]
    rows = {same(text): row for row, text in enumerate(corpus)}

    def right(name: str) -> list[int]:
        found = {same(each) for each in answers[name][1]} if name in answers else set()
        return sorted(rows[each] for each in found if each in rows)

    def judged(names: list[str]) -> HeldOutQueries:
        return HeldOutQueries([answers[name][0] for name in names], [right(name) for name in names])

    held_out = {*test, *select, *known}
    fit_queries = _unheld([*(answers[name][0] for name in spare), *queries], held_out)
    allowed = set(spare)
    return checked(
        Split(
            documents=corpus,
            fit_documents=[row for row, text in enumerate(corpus) if same(text) not in held_out],
            fit_queries=fit_queries,
            fit_right=[
                right(same(query.text)) if same(query.text) in allowed else [] for query in fit_queries
            ],
            select=judged(select),
            test=judged(test),
        )
    )


def by_queries(texts: Sequence[str], queries: Sequence[Query], documents: int, seed: int = 0) -> Split:
    """Split without pairs: held-out queries without known right documents yet (`right` is empty).

    Without queries, texts that are kept out of the index serve as queries.
    """
    names = {same(query.text): query for query in queries}
    corpus = unique(texts)
    if not names:
        size = min(2 * MOST_JUDGED, int(len(corpus) * SHARE))
        chosen = np.random.default_rng(seed).permutation(len(corpus))[:size]
        names = {same(corpus[row]): Query(corpus[row]) for row in sorted(chosen)}
        corpus = [text for text in corpus if same(text) not in names]
        share = 0.5
    else:
        share = SHARE
    order = [sorted(names)[number] for number in np.random.default_rng(seed).permutation(len(names))]
    size = min(MOST_JUDGED, int(len(order) * share))
    if size < FEWEST_JUDGED:
        raise AdapterError(
            f"{len(order)} held-out texts leave {size} to judge by, at least {FEWEST_JUDGED} are "
            "needed: give "
            f"{int(np.ceil(FEWEST_JUDGED / SHARE))} queries or more"
        )
    test, select, rest = order[:size], order[size : 2 * size], order[2 * size :]
    held_out = {*test, *select}
    corpus = corpus[:documents]
    return checked(
        Split(
            documents=corpus,
            fit_documents=[row for row, text in enumerate(corpus) if same(text) not in held_out],
            fit_queries=_unheld([names[name] for name in rest], held_out),
            fit_right=[[] for _ in rest],
            select=HeldOutQueries([names[name] for name in select], []),
            test=HeldOutQueries([names[name] for name in test], []),
        )
    )


def checked(split: Split) -> Split:
    """The split, once it is checked that no text is in two of the sets; AdapterError if one is."""
    sets = {
        "fit": {same(split.documents[row]) for row in split.fit_documents}
        | {same(query.text) for query in split.fit_queries},
        "select": {same(query.text) for query in split.select.queries},
        "test": {same(query.text) for query in split.test.queries},
    }
    for one, other in (("fit", "select"), ("fit", "test"), ("select", "test")):
        shared = sets[one] & sets[other]
        if shared:
            raise AdapterError(f"{min(shared)[:60]!r} is in both the {one} and the {other} set")
    select, test = ({row for right in each.right for row in right} for each in (split.select, split.test))
    learned = {*split.fit_documents, *(row for right in split.fit_right for row in right)}
    if select & test or learned & (select | test):
        raise AdapterError("a document that answers a held-out query is in two of the sets")
    return split


def _unheld(queries: Sequence[Query], held_out: set[str]) -> list[Query]:
    """Each query once, without those that are held out."""
    found = {same(query.text): query for query in queries}
    return [query for name, query in found.items() if name not in held_out]
