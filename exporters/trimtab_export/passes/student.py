"""A torch encoder with its head, as the passes that change weights use it: batches in, vectors out.

An `EarlyStudent` ends at an exit, with a linear map of the pooled states of its layers.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab_export.passes import anatomy
from trimtab_export.source import Dense, Head

Tokens: TypeAlias = Mapping[str, NDArray[np.int64]]
Floats: TypeAlias = NDArray[np.float32]
Seen: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # what goes into a module, and comes out

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Identity": torch.nn.Identity(),
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "Sigmoid": torch.sigmoid,
}


class Student:
    """A backbone and its head. The backbone may be changed; the head stays as it is.

    `own` are further weights that can be trained, by name.
    """

    own: Mapping[str, torch.nn.Parameter]

    def __init__(self, backbone: Any, head: Head) -> None:
        self.backbone = backbone
        self.own = {}
        self._head = head
        self._known = inspect.signature(backbone.forward).parameters

    def copy(self) -> "Student":
        """A copy with weights of its own."""
        return Student(copy.deepcopy(self.backbone), self._head)

    def sharing(self) -> "Student":
        """One of the same weights, whose layers can be taken out."""
        shared = {id(weight): weight for weight in self.backbone.parameters()}
        return Student(copy.deepcopy(self.backbone, shared), self._head)

    def __call__(self, batch: Tokens) -> torch.Tensor:
        """float32 (n, dimensions) for a padded batch, as the exported graph gives them."""
        inputs = self.inputs(batch)
        return self.head(self.backbone(**inputs).last_hidden_state, inputs["attention_mask"])

    def inputs(self, batch: Tokens) -> dict[str, torch.Tensor]:
        """What the backbone reads of a batch."""
        return {name: torch.from_numpy(ids) for name, ids in batch.items() if name in self._known}

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


class EarlyStudent(Student):
    """An encoder whose vectors are a linear map of the concatenated mean states of all its layers.

    Args:
        fitted: the map: weight float32 (dimensions, (layers + 1) * hidden) and bias (dimensions,).
    """

    def __init__(self, backbone: Any, head: Head, fitted: tuple[Floats, Floats]) -> None:
        super().__init__(backbone, head)
        weight, bias = (torch.nn.Parameter(torch.from_numpy(each.copy())) for each in fitted)
        self.own = {"exit.weight": weight, "exit.bias": bias}

    def __call__(self, batch: Tokens) -> torch.Tensor:
        """float32 (n, dimensions), not normalised."""
        inputs = self.inputs(batch)
        states = self.backbone(**inputs, output_hidden_states=True).hidden_states
        pooled = [_pool("mean", state, inputs["attention_mask"]) for state in states]
        return torch.nn.functional.linear(torch.cat(pooled, dim=1), *self.own.values())

    @property
    def fitted(self) -> tuple[Floats, Floats]:
        """The map as it is now."""
        weight, bias = (each.detach().numpy().copy() for each in self.own.values())
        return weight, bias


def _pool(pooling: str, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(2).to(states.dtype)
    if pooling == "mean":
        return (states * weights).sum(1) / weights.sum(1)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return states.masked_fill(weights == 0, torch.finfo(states.dtype).min).amax(1)
    return states[torch.arange(len(states)), mask.sum(1) - 1]


def traced(student: Student, batch: Tokens) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The vectors, and the states after each layer: (n, length, hidden) each."""
    states: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in anatomy.stack(student.backbone)
    ]
    try:
        return student(batch), states
    finally:
        for handle in handles:
            handle.remove()


class _AllSeenError(Exception):
    """Ends a run whose remaining results are not needed."""


def watch(student: Student, batch: Tokens, modules: Sequence[Any]) -> list[Seen]:
    """The inputs and outputs of modules, each run once, on the real tokens of a batch: (tokens, width) each.

    The encoder stops after the last of them.
    """
    return _seen(lambda: student(batch), batch, modules)


class LayerByLayer:
    """Runs a student over batches one layer at a time, so that no layer runs again for those after it.

    Args:
        first: the layer to begin with; those before it run once.
    """

    def __init__(self, student: Student, batches: Sequence[Tokens], first: Any) -> None:
        self._batches = batches
        self._inputs: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._inputs.append((args, kwargs))
            raise _AllSeenError

        handle = first.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            for batch in batches:
                with suppress(_AllSeenError):
                    student(batch)
        finally:
            handle.remove()

    def watch(self, layer: Any, modules: Sequence[Any]) -> Iterator[list[Seen]]:
        """Of each batch, the inputs and outputs of modules of the layer that comes next: see `watch`."""
        for batch, (args, kwargs) in zip(self._batches, self._inputs, strict=True):
            yield _seen(partial(layer, *args, **kwargs), batch, modules)

    def through(self, layer: Any) -> None:
        """The layer is final: those after it read its outputs from now on."""
        for number, (args, kwargs) in enumerate(self._inputs):
            output = layer(*args, **kwargs)
            states = output[0] if isinstance(output, tuple) else output
            self._inputs[number] = (states, *args[1:]), kwargs


def _seen(run: Callable[[], object], batch: Tokens, modules: Sequence[Any]) -> list[Seen]:
    real = torch.from_numpy(batch["attention_mask"] == 1)
    seen: dict[int, Seen] = {}

    def look(number: int, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen[number] = inputs[0][real], output[real]
        if len(seen) == len(modules):
            raise _AllSeenError

    handles = [
        module.register_forward_hook(lambda _, inputs, output, number=number: look(number, inputs, output))
        for number, module in enumerate(modules)
    ]
    try:
        with suppress(_AllSeenError):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [seen[number] for number in range(len(modules))]
