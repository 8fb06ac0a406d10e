"""The trained rungs: they learn to rank as the old query does.

A linear map goes on from a fitted one, with a hidden layer beside it or without; the hidden layer's last
matrix begins at zero, so that both start exactly there. The loss is listwise (Cao et al., 2007; as
distillation: Hofstaetter et al., 2021): the softmax of a query's scores over vectors sampled from the old
index is to be that of the old encoder's own query. Where right documents of queries are known, those are to
come out of it as well (the contrastive loss of van den Oord et al., 2018, over the old index).
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

HELD_OUT, MOST_HELD_OUT = 0.05, 1000  # of the rows, to stop by
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
    """`start`, with a hidden layer beside it where one is asked for, trained.

    right: rows of the fit, and the documents of the old index that answer each; None to learn from the old
    encoder's queries alone.

    After each epoch it is tried on held-out rows: how many of the documents that the old query finds first,
    or of the right ones where these are known, are found? The best epoch is kept; epoch 0, which is `start`
    itself, is one of them. There is no stopping early: while the rate is high this falls, and it rises above
    where it was as the rate goes down.
    """
    if not training.epochs:
        return start
    torch.manual_seed(training.seed)
    generator = np.random.default_rng(training.seed)
    held, train = _held_out(generator.permutation(len(fit.x) if right is None else sorted(right)))
    if right is not None:
        paired, train = train, np.setdiff1d(np.arange(len(fit.x)), held)
    documents = torch.from_numpy(old_index.rows)
    network = _Network(fit, start, training, old_index)
    scale = training.temperature * _typical_score(fit, old_index)
    optimiser = torch.optim.AdamW(
        [
            {"params": [network.weight, network.shift], "lr": training.linear_rate},
            {"params": [network.inward, network.bias, network.outward], "lr": training.rate},
        ],
        weight_decay=training.decay,
    )
    steps = max(1, len(train) // training.batch)
    total = steps * training.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        [training.linear_rate, training.rate],
        total_steps=total,
        pct_start=max(0.1, 2 / total),  # at least one step of it, however few the rows
        cycle_momentum=False,
    )

    def loss(rows: NDArray[np.int64], sampled: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = functional.softmax(
                network.read(torch.from_numpy(fit.y[rows])) @ sampled.T / scale, dim=1
            )
        found = functional.log_softmax(network(torch.from_numpy(fit.x[rows])) @ sampled.T / scale, dim=1)
        weights = torch.from_numpy(fit.weights[rows])
        divergence = functional.kl_div(found, wanted, reduction="none").sum(dim=1)
        return (weights * divergence).sum() / weights.sum()

    def sample() -> NDArray[np.int64]:
        return generator.integers(0, len(documents), size=min(training.documents, len(documents)))

    def contrast(right: Mapping[int, Sequence[int]], sampled: NDArray[np.int64]) -> torch.Tensor:
        """The cross entropy of as many paired rows, over their own right documents and the sampled ones."""
        rows = generator.choice(paired, min(training.batch, len(paired)), replace=False)
        among, wanted = _relevance([right[row] for row in rows.tolist()], sampled)
        found = network(torch.from_numpy(fit.x[rows])) @ documents[among].T / scale
        return functional.cross_entropy(found, wanted)

    def success(map: Map) -> float:
        """How many of the documents that should be found first are, on the held-out rows."""
        adapted = map(fit.x[held])
        if right is None:
            return _overlap(adapted, fit.y[held], old_index)
        found = ranks(adapted, old_index, [right[row] for row in held.tolist()])
        return float(recall(found, NEAREST).mean())

    best, best_map = success(start), start
    for _ in range(training.epochs):
        shuffled = generator.permutation(train)
        for part in np.array_split(shuffled, steps):
            optimiser.zero_grad(set_to_none=True)
            sampled = sample()
            total_loss = loss(part, documents[sampled])
            if right is not None:
                total_loss = total_loss + contrast(right, sampled)
            total_loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        trained = network.map(start)
        now = success(trained)
        if now > best:
            best, best_map = now, trained
    return best_map


def _held_out(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A share of the rows to stop by, and the rest."""
    held, rest = np.split(rows, [min(MOST_HELD_OUT, max(1, int(len(rows) * HELD_OUT)))])
    return held, rest


def _relevance(
    right: Sequence[Sequence[int]], sampled: NDArray[np.int64]
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """The documents, each once, that rows are to choose among, and the share of each that is wanted.

    A document that answers another row of the batch is one more that does not answer this one.
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
        """The vectors as the index compares them."""
        if self._similarity == "cosine":
            return functional.normalize(adapted, dim=1)
        if self._similarity == "euclidean":
            return functional.pad(adapted, (0, 1), value=1.0)
        return adapted

    def map(self, start: Map) -> Map:
        """The network as it is now, its standardisation folded in."""
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
    """The share of each old query's first NEAREST documents among those of its adapted twin."""
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
    """What a score of 1 is among cosines: the length of a query times that of a document."""
    if old_index.similarity == "cosine":
        return 1.0
    columns = fit.y.shape[1]
    lengths = np.linalg.norm(old_index.rows[:, :columns], axis=1).mean()
    return float(lengths * np.linalg.norm(fit.y, axis=1).mean())
