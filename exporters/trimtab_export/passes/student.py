"""A torch encoder with its head, as the passes that change weights see it: batches in, vectors out."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab_export.source import Dense, Head

Tokens: TypeAlias = Mapping[str, NDArray[np.int64]]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Identity": torch.nn.Identity(),
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "Sigmoid": torch.sigmoid,
}


class Student:
    """A backbone and the head behind it. The backbone may be changed; the head stays as it is."""

    def __init__(self, backbone: Any, head: Head) -> None:
        self.backbone = backbone
        self._head = head
        self._known = inspect.signature(backbone.forward).parameters

    def copy(self) -> "Student":
        """One of its own weights."""
        return Student(copy.deepcopy(self.backbone), self._head)

    def __call__(self, batch: Tokens) -> torch.Tensor:
        """float32 (n, dimensions) of a padded batch, as the exported graph gives it."""
        inputs = {name: torch.from_numpy(ids) for name, ids in batch.items() if name in self._known}
        return self.head(self.backbone(**inputs).last_hidden_state, inputs["attention_mask"])

    def head(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(n, length, hidden) to (n, dimensions)."""
        vectors = _pool(str(self._head.pooling), states, mask)
        for layer in self._head.layers:
            if isinstance(layer, Dense):
                bias = None if layer.bias is None else torch.from_numpy(layer.bias)
                vectors = torch.nn.functional.linear(vectors, torch.from_numpy(layer.weight), bias)
                vectors = ACTIVATIONS[layer.activation](vectors)
            else:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors


def _pool(pooling: str, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(2).to(states.dtype)
    if pooling == "mean":
        return (states * weights).sum(1) / weights.sum(1)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return states.masked_fill(weights == 0, torch.finfo(states.dtype).min).amax(1)
    return states[torch.arange(len(states)), mask.sum(1) - 1]


def buckets(lengths: Sequence[int], size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Numbers of texts in batches of alike lengths, the batches in random order."""
    order = sorted(range(len(lengths)), key=lambda number: (lengths[number], number))
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    for place in rng.permutation(len(groups)):
        yield groups[place]
