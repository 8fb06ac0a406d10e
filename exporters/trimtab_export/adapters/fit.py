"""The steps of a fit: read, split, check, embed, climb, choose, judge, write."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import variants
from trimtab.artifacts.adapter import (
    AdapterFolder,
    Check,
    read,
)
from trimtab.artifacts.manifest import Manifest
from trimtab.errors import AdapterError
from trimtab.kinds import Role
from trimtab_export.adapters import checks, inputs, publish, split
from trimtab_export.adapters.climb import FitData, FittedRung, climb
from trimtab_export.adapters.encode import BundleEncoder
from trimtab_export.adapters.inputs import Query, RelevantPair
from trimtab_export.adapters.judge import EncodedQueries, Indexes, Judgement, choose, judge
from trimtab_export.adapters.maps import Groups
from trimtab_export.adapters.metrics import index, unit
from trimtab_export.adapters.request import Request
from trimtab_export.adapters.split import HeldOutQueries, Split
from trimtab_export.adapters.stage import staged

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FitInputs:
    """The contents of the input files."""

    texts: list[str]
    queries: list[Query]
    pairs: list[RelevantPair]


@dataclass(frozen=True, slots=True)
class Fitted:
    """The results of a fit."""

    split: Split
    ground: FitData
    rungs: list[FittedRung]
    outcome: Judgement
    indexes: Indexes
    select: EncodedQueries
    test: EncodedQueries


def fit(request: Request) -> AdapterFolder:
    """Fit an adapter, judge it, and write it next to the new encoder's bundles.

    Prints its progress on standard error. If it stops, computed vectors are kept for the next run.

    Raises AdapterError, and publishes nothing, if the inputs are not what they claim to be. An adapter that
    is not good enough is still written, with a negative verdict and the reasons.
    """
    new, old = variants.read(str(request.source)), variants.read(str(request.target))
    if new.manifest.space == old.manifest.space:
        raise AdapterError(
            f"{request.source} and {request.target} have the same space {new.manifest.space}: their vectors "
            "can be compared as they are"
        )
    name = request.name or default_name(new.manifest, old.manifest)
    found = FitInputs(
        texts=inputs.read_texts(request.texts),
        queries=[] if request.queries is None else inputs.read_queries(request.queries),
        pairs=[] if request.pairs is None else inputs.read_pairs(request.pairs),
    )
    with staged(new.path.absolute().parent, name) as stage:
        source, target = BundleEncoder(new, stage.cache), BundleEncoder(old, stage.cache)
        known: dict[str, Floats] = {}
        if request.old_vectors is not None:
            known = inputs.read_vectors(
                request.old_vectors, found.texts, old.manifest.space, old.manifest.dimensions
            )
            held = list(known)
            checks.old_space(np.stack([known[text] for text in held]), held, target, request.old_vectors)
        fitted = learn(source, target, found, known, request.documents, request.fit_queries)
        publish.publish(stage, request, new, old, fitted.split, fitted.ground, fitted.test, fitted.outcome)
    return read(stage.target)


def default_name(new: Manifest, old: Manifest) -> str:
    """v1-to-OLD-v1, with the variants' names unless they are the first of their bundles."""
    first, second = (each.variants[0] for each in (new, old))
    source = f"{first.name}-v{new.version}" if first.moved else f"v{new.version}"
    target = f"{old.name}-v{old.version}" + (f"-{second.name}" if second.moved else "")
    return f"{source}-to-{target}"


def learn(
    source: BundleEncoder,
    target: BundleEncoder,
    found: FitInputs,
    known: dict[str, Floats],
    documents: int,
    fit_queries: int,
) -> Fitted:
    """Split, check, embed, climb the ladder, choose and judge."""
    if found.pairs:
        checks.roles(found.pairs, found.texts)
        parts = split.by_pairs(found.texts, found.queries, found.pairs, documents)
    else:
        parts = split.by_queries(found.texts, found.queries, documents)
    parts = replace(
        parts, fit_queries=parts.fit_queries[:fit_queries], fit_right=parts.fit_right[:fit_queries]
    )
    paired = sum(1 for right in parts.fit_right if right)
    say(
        f"{len(parts.documents):,} documents; {len(parts.fit_queries):,} queries to learn from, "
        f"{paired:,} of them with their documents, {len(parts.select.queries):,} to choose by, "
        f"{len(parts.test.queries):,} to judge by"
    )
    looked = _prompts(source, target, parts, bool(found.pairs))
    new_rows = _new_rows(source, parts.documents, "passage")
    old_rows = _old_rows(target, parts.documents, known)
    for rows, what in ((new_rows[:, : source.dimensions], "new"), (old_rows, "old")):
        checks.spread(rows, f"the {what} encoder's vectors of the texts")
    similarity = target.manifest.similarity
    indexes = Indexes(
        old=index(old_rows, similarity),
        new=index(new_rows[:, : source.dimensions], source.manifest.similarity),
        dimensions=source.dimensions,
    )
    groups = sorted({query.group for query in parts.fit_queries} - {""})
    asked = {
        name: _asked(source, target, each, groups, indexes)
        for name, each in (("select", parts.select), ("test", parts.test))
    }
    ground = _ground(source, target, parts, new_rows, old_rows, groups, indexes)
    looked += [
        checks.enough(len(ground.rows), len(parts.test.queries)),
        checks.likeness(ground.rows[:, : source.dimensions], asked["test"].rows[:, : source.dimensions]),
    ]
    rungs = list(
        climb(
            ground,
            lambda map, reads: indexes.recall(map, reads, asked["select"]),
            lambda name: say(f"fitting: {name}"),
        )
    )
    chosen, told = choose(rungs, indexes, asked["select"])
    outcome = judge(chosen, told, indexes, asked["select"], asked["test"], looked, by_pairs=bool(found.pairs))
    return Fitted(parts, ground, rungs, outcome, indexes, asked["select"], asked["test"])


def say(line: str) -> None:
    """Print a line of progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _prompts(source: BundleEncoder, target: BundleEncoder, parts: Split, paired: bool) -> list[Check]:
    """Try prompts on both encoders, with pairs of the select set; needs pairs."""
    if not paired:
        return []
    queries = [query.text for query in parts.select.queries]
    documents = [parts.documents[right[0]] for right in parts.select.right]
    return [
        checks.prompts(encoder, which, queries, documents)
        for encoder, which in ((source, "new"), (target, "old"))
    ]


def _new_rows(source: BundleEncoder, texts: Sequence[str], role: Role) -> Floats:
    """[embedding | states] of each text, float32 (n, dimensions + width)."""
    vectors, states = source.rows(texts, role, f"{source.name}, {role}")
    return np.concatenate([vectors, states.astype(np.float32)], axis=1)


def _old_rows(target: BundleEncoder, texts: Sequence[str], known: dict[str, Floats]) -> Floats:
    """Old vectors of texts: from the store if it has them, else embedded."""
    missing = [text for text in texts if text not in known]
    fresh = dict(zip(missing, target.vectors(missing, "passage", f"{target.name}, passages"), strict=True))
    return np.stack([known[text] if text in known else fresh[text] for text in texts])


def _asked(
    source: BundleEncoder,
    target: BundleEncoder,
    judged: HeldOutQueries,
    groups: Sequence[str],
    indexes: Indexes,
) -> EncodedQueries:
    texts = [query.text for query in judged.queries]
    old = target.vectors(texts, "query", f"{target.name}, held-out queries")
    return EncodedQueries(
        rows=_new_rows(source, texts, "query"),
        old=old,
        groups=_numbers(judged.queries, groups),
        # Without pairs, the old encoder's first document counts as the right one.
        right=judged.right or indexes.nearest(old),
    )


def _ground(
    source: BundleEncoder,
    target: BundleEncoder,
    parts: Split,
    new_rows: Floats,
    old_rows: Floats,
    groups: Sequence[str],
    indexes: Indexes,
) -> FitData:
    """The queries to fit on, followed by the documents."""
    texts = [query.text for query in parts.fit_queries]
    asked = target.vectors(texts, "query", f"{target.name}, queries")
    y = np.concatenate([asked, old_rows[parts.fit_documents]])
    cosine = target.manifest.similarity == "cosine"
    numbers = np.concatenate(
        [_numbers(parts.fit_queries, groups), np.zeros(len(parts.fit_documents), np.int64)]
    )
    return FitData(
        rows=np.concatenate([_new_rows(source, texts, "query"), new_rows[parts.fit_documents]]),
        y=unit(y) if cosine else y,
        weights=np.ones(len(y), np.float32),
        dimensions=source.dimensions,
        unit_input=cosine,
        unit_output=target.manifest.normalized,
        scale=float(np.median(np.linalg.norm(y, axis=1))) if cosine else 1.0,
        groups=numbers,
        group_names=tuple(groups),
        old_index=indexes.old,
        right={row: right for row, right in enumerate(parts.fit_right) if right},
    )


def _numbers(queries: Sequence[Query], groups: Sequence[str]) -> Groups:
    """The number of each query's group; 0 for no group or an unknown one."""
    number = {name: place for place, name in enumerate(groups, 1)}
    return np.array([number.get(query.group, 0) for query in queries], dtype=np.int64)
