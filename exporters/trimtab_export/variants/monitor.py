"""Monitors a training: how much quality a student keeps on texts that it is not trained on."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab_export.passes import bf16_linear
from trimtab_export.passes.student import Student
from trimtab_export.source import Source
from trimtab_export.tokens import Collator
from trimtab_export.variants import retrieval
from trimtab_export.variants.retrieval import Pairs

QUERIES, DOCUMENTS = 250, 500
BATCH = 32


class TrainingMonitor:
    """Measures a student on pairs; the whole encoder's vectors of them are computed once.

    Args:
        queries, documents: at most how many of the pairs' are used.
    """

    def __init__(
        self, teacher: Student, pairs: Pairs, source: Source, collator: Collator,
        queries: int = QUERIES, documents: int = DOCUMENTS,
    ) -> None:  # fmt: skip
        self._source, self._collator = source, collator
        self._queries = [source.prompts.query + text for text in pairs.queries[:queries]]
        self._documents = [source.prompts.passage + text for text in pairs.documents[:documents]]
        self._teacher = teacher

    @cached_property
    def _whole(self) -> NDArray[np.float32]:
        with torch.no_grad(), bf16_linear.where_faster():
            return self._embed(self._teacher)

    @cached_property
    def ndcg(self) -> float:
        """The encoder's own nDCG@10."""
        return self._ndcg(self._whole)

    def __call__(self, student: Student) -> tuple[float, float]:
        """The share of the encoder's nDCG@10 that is kept, and the mean cosine to its vectors."""
        mine = self._embed(student)
        cosines = torch.nn.functional.cosine_similarity(torch.from_numpy(mine), torch.from_numpy(self._whole))
        return self._ndcg(mine) / max(self.ndcg, 1e-9), float(cosines.mean())

    def _ndcg(self, rows: NDArray[np.float32]) -> float:
        count = len(self._queries)
        return float(retrieval.gains(rows[:count], rows[count:], self._source.similarity)[0].mean())

    def _embed(self, student: Student) -> NDArray[np.float32]:
        texts: Sequence[str] = [*self._queries, *self._documents]
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        rows = np.zeros((len(texts), self._source.dimensions), np.float32)
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            rows[numbers] = student(self._collator([texts[number] for number in numbers])).numpy()
        return rows
