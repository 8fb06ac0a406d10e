"""Heals a cut encoder by distilling the whole one into it, on plain texts: no labels, no pairs.

The whole encoder reads each batch alongside the student, so any text teaches, and none has to be seen twice.
Two things are learned at once: the vectors, at length 1, and the states of all tokens, after the last layer
and after each layer that stays. A batch has some fifty vectors but thousands of states: they transfer the
geometry within minutes (as in Jiao et al., 2020, arXiv:1909.10351, without its second stage).

From time to time the student is measured on texts of a kind that is not trained on. That gives the curve,
ends a training that no longer helps, and tells which weights were the best.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from trimtab.errors import ExportError
from trimtab_export.passes import bf16_linear, progress
from trimtab_export.passes.curve import Point
from trimtab_export.passes.progress import Checkpoint
from trimtab_export.passes.student import Student, Tokens, traced

Mix: TypeAlias = Callable[[int], Sequence[Tokens]]  # the batches of a chunk, the same each time
Look: TypeAlias = Callable[[Student], tuple[float, float]]  # the share of the nDCG, the mean cosine
Tell: TypeAlias = Callable[[str], object]

# At 3e-4, a student whose cut was repaired well lost part of that again at first.
RATE = 1e-4
# With a fitted head, RATE would undo the fit; the head itself reads thousands of columns.
FITTED_RATE, FITTED_OWN_RATE = 5e-5, 1e-5
BETAS = (0.9, 0.98)
WARM = 0.03  # of the tokens
VECTORS_WEIGHT = 5.0
SPREAD_BATCHES = 4
LEAST_SPREAD = 1e-6
CLIP = 1.0
SAVE_SECONDS = 60.0
LOOKS = 8  # measurements over the whole training, and one before it
PATIENCE = 3  # measurements without improvement, then it ends
EMBEDDINGS = "embeddings."  # half of the weights and none of the work: they are not trained


@dataclass(frozen=True)
class Lesson:
    """What a student is taught.

    Args:
        teacher: the whole encoder.
        mix: the endless texts: the batches of chunk 0, 1, and so on.
        targets: for each of the student's layers, after how many of the teacher's layers its target states
        are; None: only the vectors are learned.
        tokens: how many tokens to train on.
        look: measures the student on texts that are not trained on; None: no measurement.
    """

    teacher: Student
    mix: Mix
    targets: Sequence[int] | None
    tokens: int
    look: Look | None = None


def heal(student: Student, lesson: Lesson, path: Path, tell: Tell) -> None:
    """Train the student in place.

    Args:
        path: the checkpoint file, read if it exists.
        tell: called with a line of progress now and then.

    Raises ExportError if the loss is not finite.
    """
    trained = _trained(student)
    optimiser = _optimiser(student, trained)
    rates = [group["lr"] for group in optimiser.param_groups]
    checkpoint, best = progress.load(path, trained, optimiser)
    student.backbone.train(False)  # without dropout: the teacher has none either
    spreads = Spreads.of_teacher(lesson)
    if lesson.look is not None and not checkpoint.curve:
        best = _look(student, lesson.look, trained, best, checkpoint, tell)
    saved = time.monotonic()
    while not checkpoint.done:
        started = time.monotonic()
        batches = lesson.mix(checkpoint.chunk)
        for batch in batches[checkpoint.place :]:
            share = _rate(checkpoint.tokens / lesson.tokens)
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = share * rate
            loss = _step(student, lesson, spreads, batch, optimiser, checkpoint.step + 1)
            before, checkpoint.tokens = (
                checkpoint.tokens,
                checkpoint.tokens + int(batch["attention_mask"].sum()),
            )
            checkpoint.step, checkpoint.place = checkpoint.step + 1, checkpoint.place + 1
            checkpoint.seconds += time.monotonic() - started
            if lesson.look is not None and _due(before, checkpoint.tokens, lesson.tokens):
                best = _look(student, lesson.look, trained, best, checkpoint, tell)
            checkpoint.done = checkpoint.tokens >= lesson.tokens or _stuck(checkpoint.curve)
            if checkpoint.done or time.monotonic() - saved > SAVE_SECONDS:
                progress.save(path, trained, best, optimiser, checkpoint)
                saved = time.monotonic()
                tell(
                    f"healing {checkpoint.tokens / 1e6:.2f} of {lesson.tokens / 1e6:g} M tokens, "
                    f"loss {loss:.4f}"
                )
            if checkpoint.done:
                break
            started = time.monotonic()
        else:
            checkpoint.chunk, checkpoint.place = checkpoint.chunk + 1, 0
    for name, weight in best.items():
        trained[name].data.copy_(weight)


def trial(student: Student, lesson: Lesson, batches: Iterable[Tokens]) -> Iterator[float]:
    """Trial steps of a training, one by one, to time them: yields the losses."""
    trained = _trained(student)
    optimiser = _optimiser(student, trained)
    spreads = Spreads.of_teacher(lesson)
    for number, batch in enumerate(batches, 1):
        yield _step(student, lesson, spreads, batch, optimiser, number)


def _trained(student: Student) -> dict[str, torch.nn.Parameter]:
    found: dict[str, torch.nn.Parameter] = {}
    for name, weight in student.backbone.named_parameters():
        weight.requires_grad_(not name.startswith(EMBEDDINGS))
        if weight.requires_grad:
            found[name] = weight
    return found | dict(student.own)


def _optimiser(student: Student, trained: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    inner = [weight for name, weight in trained.items() if name not in student.own]
    groups: list[dict[str, Any]] = [{"params": inner, "lr": FITTED_RATE if student.own else RATE}]
    if student.own:
        groups.append({"params": list(student.own.values()), "lr": FITTED_OWN_RATE})
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0, fused=True)


def _step(
    student: Student,
    lesson: Lesson,
    spreads: "Spreads",
    batch: Tokens,
    optimiser: torch.optim.Optimizer,
    number: int,
) -> float:
    with bf16_linear.where_faster():
        with torch.no_grad():
            wanted, states = traced(lesson.teacher, batch)
        vectors, mine = traced(student, batch)
        loss = VECTORS_WEIGHT * _apart(vectors, wanted) / spreads.vectors
        if lesson.targets is not None:
            real = torch.from_numpy(batch["attention_mask"] == 1)
            theirs = [states[target - 1] for target in lesson.targets]
            loss = loss + _distance(mine, theirs, spreads.of(lesson.targets), real)
    if not torch.isfinite(loss):
        raise ExportError(
            f"healing: the loss is {loss.item()} at step {number}: the encoder's weights hold NaN or infinity"
        )
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    torch.nn.utils.clip_grad_norm_([weight for weight in weights if weight.grad is not None], CLIP)
    optimiser.step()
    return loss.item()


def _apart(vectors: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The mean squared distance of vectors scaled to length 1."""
    mine, theirs = (torch.nn.functional.normalize(each, dim=1) for each in (vectors, wanted))
    return (mine - theirs).square().sum(1).mean()


def _distance(
    mine: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    spreads: Sequence[float],
    real: torch.Tensor,
) -> torch.Tensor:
    """The last layer's distance plus the mean of the others', each divided by the spread of its targets."""
    distances = [
        (one[real] - other[real]).square().mean() / spread
        for one, other, spread in zip(mine, wanted, spreads, strict=True)
    ]
    return distances[-1] + sum(distances[:-1], torch.zeros(())) / len(mine)


@dataclass(frozen=True)
class Spreads:
    """The variance of the teacher's vectors, and of the states after each of its layers.

    Some encoders' vectors all lie in a narrow cone: the differences between them are small, but count.
    """

    vectors: float
    states: Sequence[float]

    @classmethod
    def of_teacher(cls, lesson: Lesson) -> "Spreads":
        """Measured over the first batches of the mix."""
        vectors, states = [], []
        with torch.no_grad(), bf16_linear.where_faster():
            for batch in lesson.mix(0)[:SPREAD_BATCHES]:
                found, layers = traced(lesson.teacher, batch)
                real = torch.from_numpy(batch["attention_mask"] == 1)
                vectors.append(torch.nn.functional.normalize(found, dim=1))
                states.append([layer[real].var(0).mean() for layer in layers])
        spread = torch.cat(vectors).var(0).sum()
        return cls(
            max(LEAST_SPREAD, spread.item()),
            [max(LEAST_SPREAD, torch.stack(each).mean().item()) for each in zip(*states, strict=True)],
        )

    def of(self, targets: Sequence[int]) -> list[float]:
        """Those of the states after so many layers."""
        return [self.states[target - 1] for target in targets]


def _rate(done: float) -> float:
    """The learning rate's factor at this point of the training: a short warm-up, then linear decay to
    zero."""
    return max(done / WARM, 0.01) if done < WARM else max(0.0, 1 - done) / (1 - WARM)


def _due(before: int, now: int, total: int) -> bool:
    """Whether to measure the student: after each LOOKS-th of the tokens."""
    return before * LOOKS // total < now * LOOKS // total


def _look(
    student: Student,
    look: Look,
    trained: dict[str, torch.nn.Parameter],
    best: dict[str, torch.Tensor],
    checkpoint: Checkpoint,
    tell: Tell,
) -> dict[str, torch.Tensor]:
    """Measure the student, and add a point to the curve. Returns the best weights so far."""
    with torch.no_grad(), bf16_linear.where_faster():
        ndcg, cosine = look(student)
    better = cosine > max((point.cosine for point in checkpoint.curve), default=-2.0)
    checkpoint.curve.append(
        Point(checkpoint.tokens, round(checkpoint.seconds, 1), round(ndcg, 4), round(cosine, 5))
    )
    tell(
        f"after {checkpoint.tokens / 1e6:.2f} M tokens, {checkpoint.seconds / 60:.1f} minutes: "
        f"nDCG {ndcg:.3f}, cosine {cosine:.4f} on texts that are not trained on"
    )
    return {name: weight.detach().clone() for name, weight in trained.items()} if better else best


def _stuck(curve: Sequence[Point]) -> bool:
    """Whether the last measurements brought no improvement. The one before the training, which may stay the
    best for long, does not count."""
    cosines = [point.cosine for point in curve[1:]]
    return len(cosines) > PATIENCE and max(cosines[-PATIENCE:]) <= max(cosines[:-PATIENCE])
