"""Measures how much of its encoder's quality a variant keeps, and what it gains: figures for its report
card."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import cards, durable
from trimtab.errors import ExportError
from trimtab_export import evaluate, runtime, sentences
from trimtab_export.graph.head import OUTPUT
from trimtab_export.runtime import AnyGraph
from trimtab_export.source import Source
from trimtab_export.tokens import Collator
from trimtab_export.variants import kept, packed, retrieval
from trimtab_export.variants.kept import Vectors
from trimtab_export.variants.retrieval import Pairs

Floats: TypeAlias = NDArray[np.float32]

BATCH = 16
SHAPES = ((1, 16), (8, 16), (1, 128), (8, 64), (32, 16))
ROUNDS = 12  # both graphs in turns
LEAST_BATCH_COSINE = 0.99999
LEAST_NDCG = 0.2  # of the source over a set; below it, there is nothing to keep
SIDES = ("queries", "documents")
NEIGHBOURS = 200  # words of the long text that a short one is put beside


@dataclass(frozen=True)
class Reference:
    """What variants are measured by: the source's own graph, and its vectors of each set of pairs."""

    graph: Path
    source: Source
    collator: Collator
    sets: tuple[Pairs, ...]
    vectors: tuple[Vectors, ...]

    @classmethod
    def of(
        cls, graph: Path, source: Source, collator: Collator, sets: Sequence[Pairs], stored: Path
    ) -> "Reference":
        """The vectors are read from the file `stored` if an earlier run left them there.

        A set in which the source itself finds next to nothing, such as one in a language that it does not
        know, is left out: there is nothing to keep. Raises ExportError if no set is left.
        """
        vectors = _read(stored, sets) or embed_sets(graph, source, collator, sets, stored)
        found = [
            (pairs, each)
            for pairs, each in zip(sets, vectors, strict=True)
            if retrieval.gains(each.queries, each.documents, source.similarity)[0].mean() >= LEAST_NDCG
            or pairs.kind == "yours"
        ]
        if not found:
            raise ExportError(
                f"the encoder itself finds next to nothing over {', '.join(pairs.name for pairs in sets)}: "
                "there is nothing to judge variants by. Give --pairs"
            )
        return cls(graph, source, collator, *zip(*found, strict=True))


def embed(graph: AnyGraph, collator: Collator, texts: Sequence[str], prompt: str = "") -> Floats:
    """float32 (texts, dimensions), in batches of similar lengths."""
    session = runtime.session(graph)
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    rows: list[Any] = [None] * len(texts)
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        batch = collator([texts[number] for number in numbers], prompt)
        for number, row in zip(numbers, runtime.run(session, OUTPUT, batch), strict=True):
            rows[number] = row
    return np.stack(rows)


def embed_pairs(graph: AnyGraph, source: Source, collator: Collator, pairs: Pairs) -> Vectors:
    """The pairs' vectors, each side with its prompt."""
    return Vectors(
        embed(graph, collator, pairs.queries, source.prompts.query),
        embed(graph, collator, pairs.documents, source.prompts.passage),
    )


def embed_sets(
    graph: AnyGraph, source: Source, collator: Collator, sets: Sequence[Pairs], keep: Path | None = None
) -> list[Vectors]:
    """The vectors of several sets, written to the file `keep` as well."""
    vectors = [embed_pairs(graph, source, collator, pairs) for pairs in sets]
    if keep is not None:
        rows = {f"{n} {side}": getattr(each, side) for n, each in enumerate(vectors) for side in SIDES}
        with durable.replacing(keep) as stream:
            np.savez(stream, **rows)
    return vectors


def _read(path: Path, sets: Sequence[Pairs]) -> list[Vectors] | None:
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as rows:
        return [Vectors(*(rows[f"{n} {side}"] for side in SIDES)) for n in range(len(sets))]


def measure(
    graph: AnyGraph, files: Sequence[Path], reference: Reference, int8_limit: float,
    axes: Floats | None = None,
) -> cards.ReportCard:  # fmt: skip
    """The report card of a variant.

    Args:
        graph: the first of its `files`, in the runtime that runs it.
        int8_limit: the range of its packed vectors: see `packed.limit`.
        axes: for a narrower variant, the projection of the source's vectors to its width: (dimensions,
        width). The variant is compared with the projected vectors, and its queries search an index of these.

    Raises ExportError if a vector is not finite, or depends on its neighbours in the batch.
    """
    source = reference.source
    wholes = reference.vectors
    befores = wholes if axes is None else [_projected(each, axes, source.normalized) for each in wholes]
    nows = embed_sets(graph, source, reference.collator, reference.sets)
    if not all(np.isfinite(each.queries).all() and np.isfinite(each.documents).all() for each in nows):
        raise ExportError("the variant gives vectors that are not finite")
    batch_cosine, batch_diff = batch_invariance(graph, reference.collator, reference.sets[0])
    if batch_cosine < LEAST_BATCH_COSINE:
        raise ExportError(
            f"a text's vector changes with its neighbours in the batch: its cosine to itself is "
            f"{batch_cosine:.6f}, and at least {LEAST_BATCH_COSINE} is required"
        )
    pairs_of_rows = [
        (getattr(one, side), getattr(other, side))
        for one, other in zip(nows, befores, strict=True)
        for side in SIDES
    ]
    cosines = np.concatenate([_cosines(one, other) for one, other in pairs_of_rows])
    figures = _figures(graph, files, reference, nows, befores, int8_limit, cosines, batch_cosine)
    differences = [np.abs(one - other).max() for one, other in pairs_of_rows]
    parity = cards.Parity(
        texts=len(cosines),
        max_abs_diff=float(max(differences)),
        min_cosine=float(cosines.min()),
        batch_max_abs_diff=batch_diff,
    )
    speed = evaluate.measure_speed(graph, evaluate.longest(reference.collator, source.max_tokens))
    return cards.ReportCard(parity=parity, speed=speed, machine=evaluate.machine(graph), fidelity=figures)


def _figures(
    graph: AnyGraph, files: Sequence[Path], reference: Reference, nows: Sequence[Vectors],
    befores: Sequence[Vectors], int8_limit: float, cosines: NDArray[np.float64], batch_cosine: float,
) -> cards.Fidelity:  # fmt: skip
    """The quality kept over each set, and in the worst of them, and what is gained."""
    similarity = reference.source.similarity
    judged = [
        kept.judge(pairs, now, before, whole, similarity)
        for pairs, now, before, whole in zip(reference.sets, nows, befores, reference.vectors, strict=True)
    ]
    worst = min(judged, key=lambda each: each.share.ndcg.value)
    now = nows[judged.index(worst)]
    share = worst.share
    return cards.Fidelity(
        retrieval=share.name,
        queries=share.queries,
        documents=share.documents,
        source_ndcg=share.source_ndcg,
        source_recall=worst.source_recall,
        ndcg=share.ndcg,
        recall=kept.least(each.recall for each in judged),
        query_only_ndcg=kept.least(each.share.query_only_ndcg for each in judged),
        query_only_recall=kept.least(each.query_only_recall for each in judged),
        cosine=round(float(cosines.mean()), 6),
        min_cosine=round(float(cosines.min()), 6),
        batch_min_cosine=round(batch_cosine, 8),
        speedup=speedup(graph, reference.graph, reference.collator),
        bytes=sum(path.stat().st_size for path in files),
        packed=packed.measure(now.queries, now.documents, int8_limit, share.source_ndcg, similarity),
        sets=tuple(each.share for each in judged),
    )


def _projected(vectors: Vectors, axes: Floats, normalized: bool) -> Vectors:
    def project(rows: Floats) -> Floats:
        narrow: Floats = rows @ axes
        return narrow / np.linalg.norm(narrow, axis=1, keepdims=True) if normalized else narrow

    return Vectors(project(vectors.queries), project(vectors.documents))


def batch_invariance(graph: AnyGraph, collator: Collator, pairs: Pairs) -> tuple[float, float]:
    """Compares a text's vector alone with that beside a long text, and in a mixed batch.

    Returns the least cosine, and the largest difference of a component.
    """
    session = runtime.session(graph, threads=1)
    texts = [*pairs.queries[:8], *pairs.documents[:8], *sentences.ODD]
    alone = np.concatenate([runtime.run(session, OUTPUT, collator([text])) for text in texts])
    long = sentences.of_length(NEIGHBOURS, collator.count)
    beside = np.concatenate([runtime.run(session, OUTPUT, collator([text, long]))[:1] for text in texts])
    together = runtime.run(session, OUTPUT, collator([*texts, long]))[:-1]
    cosine = min(_cosines(alone, beside).min(), _cosines(alone, together).min())
    difference = max(np.abs(alone - beside).max(), np.abs(alone - together).max())
    return float(cosine), float(difference)


def speedup(graph: AnyGraph, source: Path, collator: Collator) -> tuple[cards.Speedup, ...]:
    """How many times faster one graph is than the other, one thread, in turns, by the best of ROUNDS runs.

    The thread's CPU time is taken: on a busy machine, long runs are interrupted more often than short ones,
    so wall-clock time would flatter the faster graph.
    """
    sessions = [runtime.session(path, threads=1) for path in (source, graph)]
    text = sentences.of_length(max(length for _, length in SHAPES), collator.count)
    tokens = collator([text])
    found = []
    for batch, length in SHAPES:
        if length > tokens["input_ids"].shape[1]:
            continue
        inputs = {name: np.repeat(ids[:, :length], batch, axis=0) for name, ids in tokens.items()}
        best = [np.inf, np.inf]
        for _ in range(ROUNDS + 1):  # the first allocates
            for number, session in enumerate(sessions):
                started = time.thread_time()
                runtime.run(session, OUTPUT, inputs)
                best[number] = min(best[number], time.thread_time() - started)
        found.append(cards.Speedup(batch=batch, length=length, factor=round(best[0] / best[1], 3)))
    return tuple(found)


def typical(factors: Sequence[cards.Speedup]) -> float:
    """The geometric mean of the factors."""
    return float(np.exp(np.mean([np.log(each.factor) for each in factors])))


def _cosines(one: Floats, other: Floats) -> NDArray[np.float64]:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines: NDArray[np.float64] = (one * other).sum(axis=1) / np.maximum(lengths, 1e-12)
    return cosines
