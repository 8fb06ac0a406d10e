"""The checkpoint of a training, in one file: weights, the optimiser's state, its position, its curve.

A new checkpoint is written next to the old one and then replaces it. So an interrupted training resumes from
the last complete one, and ends with the same weights as if it had never stopped.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trimtab.artifacts import durable
from trimtab_export.passes.curve import Point

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT, BEST = "weight.", "best."


@dataclass
class Checkpoint:
    """How far a training is: the next batch is number `place` of chunk `chunk` of the mix."""

    step: int = 0
    chunk: int = 0
    place: int = 0
    tokens: int = 0
    seconds: float = 0.0
    done: bool = False
    curve: list[Point] = field(default_factory=list)


def save(
    path: Path,
    trained: Mapping[str, torch.nn.Parameter],
    best: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
    checkpoint: Checkpoint,
) -> None:
    """Write a checkpoint, atomically."""
    tensors = {WEIGHT + name: weight.detach().contiguous() for name, weight in trained.items()}
    tensors |= {BEST + name: weight.contiguous() for name, weight in best.items()}
    for name, weight in trained.items():
        for key in MOMENTS:
            if key in optimiser.state[weight]:
                tensors[f"{key}.{name}"] = optimiser.state[weight][key].contiguous()
    partial = path.with_suffix(".partial")
    save_file(tensors, str(partial), metadata={"reached": json.dumps(asdict(checkpoint))})
    durable.sync(partial)
    partial.replace(path)


def load(
    path: Path, trained: Mapping[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer
) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """Restore weights and optimiser from an earlier run. Returns how far it was, and the best weights so
    far."""
    if not path.is_file():
        return Checkpoint(), {}
    with safe_open(str(path), "pt") as stored:
        checkpoint = _reached(stored.metadata())
        names = set(stored.keys())
        best = {name: stored.get_tensor(BEST + name) for name in trained if BEST + name in names}
        for name, weight in trained.items():
            weight.data.copy_(stored.get_tensor(WEIGHT + name))
            if f"{MOMENTS[0]}.{name}" in names:
                moments = {key: stored.get_tensor(f"{key}.{name}") for key in MOMENTS}
                optimiser.state[weight] = {"step": torch.tensor(float(checkpoint.step)), **moments}
    return checkpoint, best


def curve(path: Path) -> list[Point]:
    """The curve of a training; empty if there was none."""
    if not path.is_file():
        return []
    with safe_open(str(path), "pt") as stored:
        return _reached(stored.metadata()).curve


def _reached(metadata: Mapping[str, str]) -> Checkpoint:
    content = json.loads(metadata["reached"])
    return Checkpoint(**{**content, "curve": [Point(**point) for point in content["curve"]]})
