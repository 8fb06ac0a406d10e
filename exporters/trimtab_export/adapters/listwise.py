"""The trained rungs: they learn to rank as the old query does.

Training starts from a fitted linear map, with or without an additional hidden layer; the hidden layer's last
matrix starts at zero, so both start at exactly the fitted map. The loss is listwise (Cao et al., 2007; as
distillation: Hofstaetter et al., 2021): the softmax of a query's scores over vectors sampled from the old
index should equal that of the old encoder's query. For queries with known right documents, a contrastive loss
over the old index is added (van den Oord et al., 2018).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from trimtab_export.adapters.ladder import Fit
from trimtab_export.adapters.maps import Hidden, Map
from trimtab_export.adapters.metrics import CHUNK, Index, ranks, recall, scores

Floats: TypeAlias = NDArray[np.float32]

HELD_OUT, MOST_HELD_OUT = 0.05, 1000  # of the rows are held out, to choose the epoch
NEAREST = 10
EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Training:
    """How the network is trained."""

    width: int  # of the hidden layer; 0 for none
    epochs: int
    rate: float  # of the hidden layer
    linear_rate: float  # of the linear map that it starts from
    temperature: float = 0.05
    documents: int = 1024  # sampled anew for each step
    batch: int = 256
    decay: float = 0.01
    dropout: float = 0.1  # of the hidden layer
    seed: int = 0


def fit_listwise(
    fit: Fit,
    start: Map,
    old_index: Index,
    training: Training,
    right: Mapping[int, Sequence[int]] | None = None,
) -> Map:
    """`start`, trained, with an additional hidden layer if requested.

    right: rows of the fit, and the documents of the old index that answer each; None to learn only from the
    old encoder's queries.

    Each epoch is tested on held-out rows: how many of the old query's first documents, or of the known right
    ones, are found? The best epoch is kept; epoch 0, which is `start` itself, counts too. Training never
    stops early: the figure falls while the learning rate is high, and rises above its start as the rate
    decays.
    """
    if not training.epochs:
        return start
    torch.manual_seed(training.seed)
    lesson = _Lesson(fit, start, old_index, training, right)
    best, best_map = lesson.success(start), start
    for _ in range(training.epochs):
        lesson.epoch()
        trained = lesson.network.map(start)
        now = lesson.success(trained)
        if now > best:
            best, best_map = now, trained
    return best_map


class _Lesson:
    """A network, what it learns from, and the rows that are held out."""

    def __init__(
        self,
        fit: Fit,
        start: Map,
        old_index: Index,
        training: Training,
        right: Mapping[int, Sequence[int]] | None,
    ) -> None:
        self._fit, self._old_index, self._training, self._right = fit, old_index, training, right
        self._random = np.random.default_rng(training.seed)
        rows = self._random.permutation(len(fit.x) if right is None else sorted(right))
        self._held, self._paired = _held_out(rows)
        self._train = self._paired
        if right is not None:
            self._train = np.setdiff1d(np.arange(len(fit.x)), self._held)
        self._documents = torch.from_numpy(old_index.rows)
        self.network = _Network(fit, start, training, old_index)
        self._scale = training.temperature * _typical_score(fit, old_index)
        self._steps = max(1, len(self._train) // training.batch)
        self._optimiser, self._schedule = self._optimisation(self._steps * training.epochs)

    def epoch(self) -> None:
        """Go through the rows once."""
        for part in np.array_split(self._random.permutation(self._train), self._steps):
            self._optimiser.zero_grad(set_to_none=True)
            sampled = self._sample()
            loss = self._divergence(part, self._documents[sampled])
            if self._right is not None:
                loss = loss + self._contrast(self._right, sampled)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self._optimiser.step()
            self._schedule.step()

    def success(self, map: Map) -> float:
        """On the held-out rows, the share of the documents that should come first that do."""
        adapted = map(self._fit.x[self._held])
        if self._right is None:
            return _overlap(adapted, self._fit.y[self._held], self._old_index)
        found = ranks(adapted, self._old_index, [self._right[row] for row in self._held.tolist()])
        return float(recall(found, NEAREST).mean())

    def _optimisation(self, total: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
        """The optimizer and the learning-rate schedule for `total` steps."""
        network, training = self.network, self._training
        optimiser = torch.optim.AdamW(
            [
                {"params": [network.weight, network.shift], "lr": training.linear_rate},
                {"params": [network.inward, network.bias, network.outward], "lr": training.rate},
            ],
            weight_decay=training.decay,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            [training.linear_rate, training.rate],
            total_steps=total,
            pct_start=max(0.1, 2 / total),  # at least one step, however few the rows
            cycle_momentum=False,
        )
        return optimiser, schedule

    def _sample(self) -> NDArray[np.int64]:
        count = len(self._documents)
        return self._random.integers(0, count, size=min(self._training.documents, count))

    def _divergence(self, rows: NDArray[np.int64], sampled: torch.Tensor) -> torch.Tensor:
        """How far the adapted rows' scores over the sampled documents diverge from the old queries'."""
        x, y, weights = (
            torch.from_numpy(each[rows]) for each in (self._fit.x, self._fit.y, self._fit.weights)
        )
        with torch.no_grad():
            wanted = functional.softmax(self.network.read(y) @ sampled.T / self._scale, dim=1)
        found = functional.log_softmax(self.network(x) @ sampled.T / self._scale, dim=1)
        divergence = functional.kl_div(found, wanted, reduction="none").sum(dim=1)
        return (weights * divergence).sum() / weights.sum()

    def _contrast(self, right: Mapping[int, Sequence[int]], sampled: NDArray[np.int64]) -> torch.Tensor:
        """The cross entropy of equally many paired rows, over their right documents and the sampled ones."""
        size = min(self._training.batch, len(self._paired))
        rows = self._random.choice(self._paired, size, replace=False)
        among, wanted = _relevance([right[row] for row in rows.tolist()], sampled)
        found = self.network(torch.from_numpy(self._fit.x[rows])) @ self._documents[among].T / self._scale
        return functional.cross_entropy(found, wanted)


def _held_out(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits the rows into a held-out share and the rest."""
    held, rest = np.split(rows, [min(MOST_HELD_OUT, max(1, int(len(rows) * HELD_OUT)))])
    return held, rest


def _relevance(
    right: Sequence[Sequence[int]], sampled: NDArray[np.int64]
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """The documents, each once, that rows choose among, and the target share of each.

    A document that answers another row of the batch serves this row as a negative.
    """
    owners = np.repeat(np.arange(len(right)), [len(each) for each in right])
    answers = np.concatenate([np.asarray(each, np.int64) for each in right])
    among = np.unique(np.concatenate([answers, sampled]))
    wanted = torch.zeros(len(right), len(among))
    wanted[owners, np.searchsorted(among, answers)] = 1.0
    return among, wanted / wanted.sum(dim=1, keepdim=True)


class _Network(torch.nn.Module):
    """z W + b + relu(z U + c) V over standardised columns z."""

    def __init__(self, fit: Fit, start: Map, training: Training, old_index: Index) -> None:
        super().__init__()
        self._dropout, width = training.dropout, training.width
        self._unit = start.unit_input
        self._columns = slice(start.first, start.last)
        self._similarity = old_index.similarity
        read = fit.read
        self._origin = torch.from_numpy(read.mean(axis=0))
        self._spread = torch.from_numpy(read.std(axis=0) + EDGE)
        columns = read.shape[1]
        linear = np.eye(columns, dtype=np.float32) if start.weight is None else start.weight
        weight = torch.from_numpy(linear) * self._spread[:, None]
        self.weight = torch.nn.Parameter(weight.clone())
        self.shift = torch.nn.Parameter(
            torch.from_numpy(start.shift) + self._origin @ torch.from_numpy(linear)
        )
        self.inward = torch.nn.Parameter(torch.randn(columns, width) / columns**0.5)
        self.bias = torch.nn.Parameter(torch.zeros(width))
        self.outward = torch.nn.Parameter(torch.zeros(width, len(start.shift)))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows[:, self._columns]
        if self._unit:
            rows = functional.normalize(rows, dim=1)
        z = (rows - self._origin) / self._spread
        inner = functional.relu(z @ self.inward + self.bias)
        inner = functional.dropout(inner, self._dropout, self.training)
        return self.read(z @ self.weight + self.shift + inner @ self.outward)

    def read(self, adapted: torch.Tensor) -> torch.Tensor:
        """The vectors in the form that the index compares."""
        if self._similarity == "cosine":
            return functional.normalize(adapted, dim=1)
        if self._similarity == "euclidean":
            return functional.pad(adapted, (0, 1), value=1.0)
        return adapted

    def map(self, start: Map) -> Map:
        """The current network as a Map, with its standardisation folded in."""
        with torch.no_grad():
            weight = self.weight / self._spread[:, None]
            inward = self.inward / self._spread[:, None]
            hidden = None
            if len(self.outward):
                bias = self.bias - self._origin @ inward
                hidden = Hidden(inward.numpy(), bias.numpy(), self.outward.numpy().copy())
            shift = (self.shift - self._origin @ weight).numpy()
            return replace(start, weight=weight.numpy(), shift=shift, hidden=hidden)


def _overlap(adapted: Floats, old: Floats, documents: Index) -> float:
    """The share of each old query's NEAREST first documents that its adapted query also finds."""
    columns = min(NEAREST, len(documents.rows))
    shared = 0
    for start in range(0, len(old), CHUNK):
        found, wanted = (
            np.argpartition(scores(rows[start : start + CHUNK], documents), -columns, axis=1)[:, -columns:]
            for rows in (adapted, old)
        )
        shared += sum(len(np.intersect1d(*each)) for each in zip(found, wanted, strict=True))
    return shared / (len(old) * columns)


def _typical_score(fit: Fit, old_index: Index) -> float:
    """The factor from cosines to scores: the length of a query times that of a document."""
    if old_index.similarity == "cosine":
        return 1.0
    columns = fit.y.shape[1]
    lengths = np.linalg.norm(old_index.rows[:, :columns], axis=1).mean()
    return float(lengths * np.linalg.norm(fit.y, axis=1).mean())
