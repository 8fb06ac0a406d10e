"""Held-out retrieval: pairs of a query and the document that answers it, and how well vectors find them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.artifact import Interval
from trimtab.errors import ExportError
from trimtab.kinds import JudgedBy, Similarity

Floats: TypeAlias = NDArray[np.float32]
Gains: TypeAlias = NDArray[np.float64]

CUT = 10
FEWEST = 20
RESAMPLES = 1000
LEAST_WORDS = 16  # of a text that can be split into a pair
QUERY_SHARE = 0.25  # of its words


@dataclass(frozen=True)
class Pairs:
    """`documents[i]` answers `queries[i]`; further documents, which answer none, may follow."""

    name: str
    queries: list[str]
    documents: list[str]
    kind: JudgedBy = "left out"
    languages: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """Both sides, and each query with its document, which may have been one text."""
        both = [f"{query} {document}" for query, document in zip(self.queries, self.documents, strict=False)]
        return [*self.queries, *self.documents, *both]


def load(path: Path) -> list[tuple[str, str]]:
    """Pairs from a file with one JSON object per line: {"query": "...", "document": "..."}."""
    pairs = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--pairs {path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            query, document = entry["query"], entry["document"]
        except (ValueError, KeyError, TypeError):
            query = document = None
        if not isinstance(query, str) or not isinstance(document, str):
            raise ExportError(
                f'--pairs {path}, line {number}: no object with the texts "query" and "document"'
            )
        pairs.append((query, document))
    return pairs


def lines(path: Path) -> list[str]:
    """Texts from a file, one per line; empty lines are skipped."""
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--texts {path} cannot be read: {error}") from None


def split(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs from plain texts: the first words are the query for the rest. Short texts give none."""
    pairs = []
    for text in texts:
        words = text.split()
        if len(words) >= LEAST_WORDS:
            cut = max(4, round(QUERY_SHARE * len(words)))
            pairs.append((" ".join(words[:cut]), " ".join(words[cut:])))
    return pairs


def held_out(name: str, pairs: list[tuple[str, str]], queries: int, documents: int) -> Pairs:
    """The first pairs, each document once; ExportError if there are too few to judge by."""
    answers: dict[str, str] = {}
    for query, document in pairs:
        if len(answers) < documents:
            answers.setdefault(document, query)
    if len(answers) < FEWEST:
        raise ExportError(
            f"{name} gives {len(answers)} pairs of a query and its document; at least {FEWEST} are needed, "
            "and some hundreds are better. Give --pairs or --texts with more"
        )
    return Pairs(name, list(answers.values())[:queries], list(answers))


def gains(queries: Floats, documents: Floats, similarity: Similarity) -> tuple[Gains, Gains]:
    """nDCG@10 and R@10 of each query; query i has one right answer, document i."""
    places = np.arange(len(queries))
    ranks = []
    for start in range(0, len(queries), 256):
        scores = _scores(queries[start : start + 256], documents, similarity)
        own = places[start : start + 256]
        ranks.append((scores > scores[np.arange(len(own)), own][:, None]).sum(axis=1))
    rank = np.concatenate(ranks)
    found = (rank < CUT).astype(np.float64)
    return found / np.log2(rank + 2), found


def retention(mine: Gains, source: Gains) -> Interval:
    """The mean of one over that of the other, with its 95% interval over resampled queries."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(mine), (RESAMPLES, len(mine)))
    below = np.maximum(source[rows].mean(axis=1), 1e-9)
    low, high = np.quantile(mine[rows].mean(axis=1) / below, (0.025, 0.975))
    value = mine.mean() / max(float(source.mean()), 1e-9)
    return Interval(value=round(float(value), 4), low=round(float(low), 4), high=round(float(high), 4))


def _scores(queries: Floats, documents: Floats, similarity: Similarity) -> NDArray[Any]:
    match similarity:
        case "dot":
            return queries @ documents.T
        case "cosine":
            return queries @ _unit(documents).T
        case "euclidean":
            distances: Floats = 2 * queries @ documents.T - np.square(documents).sum(axis=1)
            return distances
        case "manhattan":
            return -np.stack([np.abs(documents - query).sum(axis=1) for query in queries])


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
