"""Checks of a fit's inputs before any figure is believed: are they what they claim to be, and enough?

Wrong inputs end the fit with AdapterError. The other checks go into the report, and one that fails makes the
verdict negative.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.adapter import Check
from trimtab.errors import AdapterError
from trimtab_export.adapters.encode import BundleEncoder
from trimtab_export.adapters.inputs import RelevantPair
from trimtab_export.adapters.metrics import Ranks, difference, unit
from trimtab_export.adapters.split import same

Floats: TypeAlias = NDArray[np.float32]

SAMPLE = 64  # texts embedded again
SAME_COSINE = 0.98  # of a text's old vector and its fresh one: int8 and float16 stores stay above this
MOST_OFF = 0.05  # of the sample may differ: texts that changed since
SPREAD = 1.5  # the least effective directions that vectors of different texts have
FEWEST_TEXTS = 500
FOUND = 0.75  # of the other documents must rank below the right one, on average; by chance it is half
LIKE = 0.05  # of the fit texts are farther from their nearest neighbour than this quantile,
UNLIKE = 0.5  # and of the judged queries at most this share
NEIGHBOURS = 3000
PROMPTED = 200  # pairs to try prompts on
BETTER = 0.05  # Recall@1 that a prompt must add, surely, to be missed
CONVENTIONS = (
    ("query: ", "passage: "),
    ("search_query: ", "search_document: "),
    ("Represent this sentence for searching relevant passages: ", ""),
    ("", ""),
)


def old_space(vectors: Floats, texts: Sequence[str], old: BundleEncoder, name: str) -> None:
    """AdapterError if the store's vectors are not the old encoder's vectors of these texts, by a sample."""
    chosen = np.random.default_rng(0).permutation(len(texts))[:SAMPLE]
    sample = [texts[row] for row in chosen]
    given, fresh = unit(vectors[chosen]), unit(old.vectors(sample, "passage"))
    off = (given * fresh).sum(axis=1) < SAME_COSINE
    if off.mean() <= MOST_OFF:
        return
    said = f"{name}: {off.sum()} of {len(sample)} vectors, embedded again with {old.name}, differ"
    nearest = (given @ fresh.T).max(axis=1)
    if (nearest >= SAME_COSINE).mean() >= 0.5 and len(sample) > 1:
        raise AdapterError(
            f"{said}, but match those of other texts: vectors and texts are not in the same order"
        )
    if old.prompt("query") != old.prompt("passage"):
        as_query = unit(old.vectors(sample, "query"))
        if ((given * as_query).sum(axis=1) >= SAME_COSINE).mean() >= 0.5:
            raise AdapterError(
                f"{said}: they were made in the query's role. Queries and passages are mixed up: embed the "
                "documents again as passages"
            )
    if old.prompt("passage"):
        bare = unit(old.prompted(sample, ""))
        if ((given * bare).sum(axis=1) >= SAME_COSINE).mean() >= 0.5:
            raise AdapterError(
                f"{said}: they were made without the prompt {old.prompt('passage')!r}, so they are in "
                "another space. Embed the documents again with the prompt"
            )
    raise AdapterError(
        f"{said} (median cosine {np.median((given * fresh).sum(axis=1)):.2f}): they are not of the space "
        f"{old.manifest.space}. Name the encoder that made them, or give the texts they were made from"
    )


def spread(vectors: Floats, what: str) -> None:
    """AdapterError if the vectors are nearly all the same, or lie on a line."""
    sample = vectors[:: max(1, len(vectors) // 2000)].astype(np.float64)
    centred = sample - sample.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    total, length = values.sum(), (sample**2).sum()
    directions = total**2 / (values**2).sum() if total > 0 else 0.0
    if not total > 1e-4 * length or directions < min(SPREAD, sample.shape[1] / 2):
        raise AdapterError(
            f"{what} are constant, or nearly so: their spread is {total / max(length, 1e-12):.1e} of "
            "their length, over "
            f"{directions:.1f} directions. Nothing can be learned or found with them; embed the texts again"
        )


def roles(pairs: Sequence[RelevantPair], texts: Sequence[str]) -> None:
    """AdapterError if the pairs' queries are the corpus and their documents the questions."""
    corpus = {same(text) for text in texts}
    sample = [pairs[row] for row in np.random.default_rng(0).permutation(len(pairs))[:2000]]
    queries_in = float(np.mean([same(pair.query.text) in corpus for pair in sample]))
    documents_in = float(np.mean([same(pair.document) in corpus for pair in sample]))
    if queries_in > documents_in + 0.2:
        raise AdapterError(
            f"{queries_in:.0%} of the pairs' queries are among the texts, and {documents_in:.0%} of "
            "their documents: "
            'queries and documents are mixed up. A pair is {"query": ..., "document": ...}, and '
            "the texts are "
            "the documents that were indexed"
        )


def meaning(old: Ranks, new: Ranks, documents: int) -> Check:
    """Do the pairs belong together? If they were shuffled, the right document ranks anywhere."""
    behind = [1 - float(each.rank.mean()) / max(documents - 1, 1) for each in (old, new)]
    passed = max(behind) >= FOUND
    finding = (
        f"the right document ranks above {behind[0]:.1%} of the others with the old encoder and "
        f"{behind[1]:.1%} with the new one; for pairs that do not belong together it would be 50%"
    )
    return Check(
        name="pairs that belong together",
        passed=passed,
        finding=finding if passed else f"{finding}. Were the pairs shuffled? Fix them",
    )


def enough(texts: int, judged: int) -> Check:
    """Are there enough texts to learn from?"""
    passed = texts >= FEWEST_TEXTS
    finding = f"{texts:,} texts and queries to learn from, {judged:,} queries to judge by"
    return Check(
        name="enough texts",
        passed=passed,
        finding=finding if passed else f"{finding}; give {FEWEST_TEXTS:,} or more, better thousands",
    )


def likeness(fitted: Floats, judged: Floats) -> Check:
    """Are the judged queries like the training data? By distances to the nearest fitted row."""
    rng = np.random.default_rng(0)
    known = unit(fitted[rng.permutation(len(fitted))[:NEIGHBOURS]])
    asked = unit(judged[rng.permutation(len(judged))[:NEIGHBOURS]])
    own = known @ known.T
    np.fill_diagonal(own, -np.inf)
    edge = float(np.quantile(own.max(axis=1), LIKE))
    share = float(((asked @ known.T).max(axis=1) < edge).mean())
    passed = share <= UNLIKE
    finding = (
        f"{share:.1%} of the judged queries are farther from all fit texts than {1 - LIKE:.0%} of these are "
        "from each other"
    )
    return Check(
        name="fit texts like the queries",
        passed=passed,
        finding=finding
        if passed
        else f"{finding}: they are of another domain. Give texts and queries like the live ones",
    )


def prompts(encoder: BundleEncoder, which: str, queries: Sequence[str], documents: Sequence[str]) -> Check:
    """Does the encoder find more with other prompts than it declares? Then its own were omitted or mixed up.

    queries, documents: pairs, row by row; each query searches all these documents.
    """
    declared = encoder.prompt("query"), encoder.prompt("passage")
    rows = range(min(PROMPTED, len(queries)))
    asked, answers = [queries[row] for row in rows], [documents[row] for row in rows]

    def hits(query_prompt: str, passage_prompt: str) -> NDArray[np.float64]:
        found = (
            unit(encoder.prompted(asked, query_prompt)) @ unit(encoder.prompted(answers, passage_prompt)).T
        )
        first: NDArray[np.float64] = (found.argmax(axis=1) == np.arange(len(asked))).astype(np.float64)
        return first

    own = hits(*declared)
    tried = [each for each in (*CONVENTIONS, declared[::-1]) if each != declared]
    gains = {each: difference(hits(*each), own) for each in dict.fromkeys(tried)}
    best = max(gains, key=lambda each: gains[each].value)
    passed = not (gains[best].value > BETTER and gains[best].low > 0)
    finding = (
        f"the {which} encoder ranks {own.mean():.1%} of {len(asked)} right documents first, with "
        f"{_told(declared)}"
    )
    if not passed:
        finding += (
            f", but {own.mean() + gains[best].value:.1%} with {_told(best)}: its prompts were left out or "
            "mixed up. Export it again with --query-prompt and --passage-prompt"
        )
    return Check(name=f"prompts of the {which} encoder", passed=passed, finding=finding)


def _told(prompts: tuple[str, str]) -> str:
    return "no prompts" if prompts == ("", "") else f"{prompts[0]!r} and {prompts[1]!r}"
