"""Distil a pruned encoder back to the whole one, on texts alone: no labels, no pairs.

The loss is the angle to the whole encoder's vectors, and the difference between the similarities of all
pairs in a batch by the one and by the other. Progress is kept in a safetensors file beside the weights, so a
run that was stopped goes on from there.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from trimtab.artifacts import durable
from trimtab.errors import ExportError
from trimtab_export.passes import bf16_linear
from trimtab_export.passes.student import Student, buckets
from trimtab_export.tokens import Batcher

Floats: TypeAlias = NDArray[np.float32]

BATCH = 32
RATE = 3e-4
# Behind a head that was fitted, RATE would undo the fit; the head itself reads thousands of columns.
FITTED_RATE, FITTED_OWN_RATE = 5e-5, 1e-5
WARM = 0.05  # of the steps
SIMILARITY_WEIGHT = 10.0
CLIP = 1.0
SAVE_SECONDS = 60.0
EMBEDDINGS = "embeddings."  # half of the weights and none of the work: they stay as they are


def heal(
    student: Student,
    texts: Sequence[str],
    vectors: Floats,
    batcher: Batcher,
    *,
    epochs: int,
    progress: Path,
    tell: Callable[[str], object],
) -> None:
    """Train the student in place.

    Args:
        texts: unlabelled, as they are sent to the encoder; some thousands.
        vectors: float32 (texts, dimensions), the whole encoder's.
        epochs: how often each text is seen.
        progress: the file of what was reached, read where it exists.
        tell: called with a line of progress now and then.

    Raises ExportError where the loss is not finite.
    """
    wanted = torch.from_numpy(vectors)
    lengths = [batcher.count(text) for text in texts]
    total = epochs * -(-len(texts) // BATCH)
    backbone = student.backbone
    trained = {
        name: weight for name, weight in backbone.named_parameters() if not name.startswith(EMBEDDINGS)
    }
    for name, weight in backbone.named_parameters():
        weight.requires_grad_(name in trained)
    groups: list[dict[str, Any]] = [{"params": list(trained.values())}]
    if student.own:
        groups.append({"params": list(student.own.values()), "lr": FITTED_OWN_RATE})
    rate = FITTED_RATE if student.own else RATE
    optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
    trained |= student.own
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, total))
    done = _resume(progress, trained, optimiser, schedule)
    backbone.train(False)  # without dropout: the teacher has none either
    step, saved = 0, time.monotonic()
    for epoch in range(epochs):
        for rows in buckets(lengths, BATCH, np.random.default_rng(epoch)):
            step += 1
            if step <= done:
                continue
            with bf16_linear.where_faster():
                mine = student(batcher([texts[row] for row in rows]))
            loss = _loss(mine, wanted[rows])
            if not torch.isfinite(loss):
                raise ExportError(
                    f"healing: the loss is {loss.item()} at step {step}: the encoder's weights, or its "
                    "vectors, hold NaN or infinity"
                )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
            optimiser.step()
            schedule.step()
            if time.monotonic() - saved > SAVE_SECONDS:
                _save(progress, trained, optimiser, step)
                saved = time.monotonic()
                tell(f"healing {step}/{total}, loss {loss.item():.4f}")
    _save(progress, trained, optimiser, step)


def _loss(vectors: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    mine = torch.nn.functional.normalize(vectors, dim=1)
    theirs = torch.nn.functional.normalize(wanted, dim=1)
    angle = 1 - (mine * theirs).sum(1).mean()
    return angle + SIMILARITY_WEIGHT * (mine @ mine.T - theirs @ theirs.T).square().mean()


def _rate(step: int, total: int) -> float:
    warm = max(1, round(WARM * total))
    return (step + 1) / warm if step < warm else max(0.02, (total - step) / max(1, total - warm))


def _save(
    path: Path, trained: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer, step: int
) -> None:
    tensors = {f"weight.{name}": weight.detach().contiguous() for name, weight in trained.items()}
    for name, weight in trained.items():
        for key in ("exp_avg", "exp_avg_sq"):
            if key in optimiser.state[weight]:
                tensors[f"{key}.{name}"] = optimiser.state[weight][key].contiguous()
    partial = path.with_suffix(".partial")
    save_file(tensors, str(partial), metadata={"progress": json.dumps({"step": step})})
    durable.sync(partial)
    partial.replace(path)


def _resume(
    path: Path,
    trained: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> int:
    """Take up what a run before reached; how many steps that was."""
    if not path.is_file():
        return 0
    with safe_open(str(path), "pt") as stored:
        step = int(json.loads(stored.metadata()["progress"])["step"])
        names = set(stored.keys())
        for name, weight in trained.items():
            weight.data.copy_(stored.get_tensor(f"weight.{name}"))
            if f"exp_avg.{name}" in names:
                optimiser.state[weight] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": stored.get_tensor(f"exp_avg.{name}"),
                    "exp_avg_sq": stored.get_tensor(f"exp_avg_sq.{name}"),
                }
    schedule.last_epoch = step
    for group, base in zip(optimiser.param_groups, schedule.base_lrs, strict=True):
        group["lr"] = base * schedule.lr_lambdas[0](step)
    return step
