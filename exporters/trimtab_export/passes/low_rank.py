"""Replaces a linear layer by two thin ones, if that is less work.

On real texts, the outputs of a layer lie close to a subspace. The layer is replaced by the projection of its
outputs on their principal axes, which is the best map of that rank for these inputs, and not just for the
weights: Chen et al., 2021 (DRONE, NeurIPS), and SVD-LLM (Wang et al., 2024, arXiv:2403.07378). A layer (in,
out) of rank r costs r (in + out) products instead of in * out, so it is replaced only if its rank is below in
* out / (in + out).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trimtab.errors import ExportError
from trimtab_export.passes import anatomy
from trimtab_export.passes.student import Student, Tokens, watch

MULTIPLE = 8  # of a rank: full vector registers


@dataclass(frozen=True)
class LayerRanks:
    """The ranks of the layers that are thin now, and how many stayed as they were."""

    thin: dict[str, int]
    whole: int


def low_rank(student: Student, batches: Sequence[Tokens], energy: float) -> LayerRanks:
    """Make the student's linear layers thin, in place.

    Args:
        batches: of real texts; a few hundred are enough.
        energy: the share of the variance of each layer's outputs that stays, in (0, 1).

    Raises ExportError if no layer gets cheaper.
    """
    anatomy.architecture(student.backbone)
    stack = anatomy.stack(student.backbone)
    linears = {name: module for name, module in stack.named_modules() if isinstance(module, torch.nn.Linear)}
    with torch.no_grad():
        moments = _moments(student, batches, list(linears.values()))
        thin: dict[str, int] = {}
        for (name, linear), (mean, covariance) in zip(linears.items(), moments, strict=True):
            axes = _axes(linear, covariance, energy)
            rank = axes.shape[1]
            if rank * (linear.in_features + linear.out_features) < linear.in_features * linear.out_features:
                owner, _, attribute = name.rpartition(".")
                setattr(stack.get_submodule(owner), attribute, _two(linear, mean, axes))
                thin[name] = rank
    if not thin:
        raise ExportError(
            f"low_rank = {energy:g}: no layer gets cheaper: to keep so much of their outputs' variance, two "
            "thin layers cost as much as the whole one. Give less"
        )
    return LayerRanks(thin, len(linears) - len(thin))


def _moments(
    student: Student, batches: Sequence[Tokens], linears: Sequence[Any]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean (in,) and covariance (in, in) of what each layer reads."""
    count = 0
    sums = [torch.zeros(linear.in_features, dtype=torch.float64) for linear in linears]
    squares = [torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64) for linear in linears]
    for batch in batches:
        seen = watch(student, batch, linears)
        count += len(seen[0][0])
        for number, (inputs, _) in enumerate(seen):
            sums[number] += inputs.sum(0)
            squares[number] += inputs.T @ inputs
    means = [total / count for total in sums]
    return [
        (mean.float(), (square / count - torch.outer(mean, mean)).float())
        for mean, square in zip(means, squares, strict=True)
    ]


def _axes(linear: Any, covariance: torch.Tensor, energy: float) -> torch.Tensor:
    """The first principal axes of a layer's outputs, (out, rank), that keep this share of their variance."""
    outputs = linear.weight.double() @ covariance.double() @ linear.weight.double().T
    values, axes = torch.linalg.eigh(outputs)
    values, axes = values.flip(0).clamp(min=0), axes.flip(1)
    held = torch.cumsum(values, 0) / values.sum().clamp(min=1e-30)
    rank = int((held < energy).sum()) + 1
    rank = min(-(-rank // MULTIPLE) * MULTIPLE, axes.shape[1])
    chosen: torch.Tensor = axes[:, :rank].float()
    return chosen


def _two(linear: Any, mean: torch.Tensor, axes: torch.Tensor) -> torch.nn.Sequential:
    """The layer as two thin ones; the part of the mean output outside the axes goes into the bias."""
    first = torch.nn.Linear(linear.in_features, axes.shape[1], bias=False)
    second = torch.nn.Linear(axes.shape[1], linear.out_features)
    first.weight.copy_(axes.T @ linear.weight)
    second.weight.copy_(axes)
    output = linear.weight @ mean
    bias = output - axes @ (axes.T @ output)
    second.bias.copy_(bias if linear.bias is None else bias + linear.bias)
    return torch.nn.Sequential(first, second)
