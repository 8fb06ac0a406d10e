"""Converts minutes of training on this machine into tokens: recipes count tokens, users count minutes."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trimtab.artifacts import durable
from trimtab_export.passes import anatomy

if TYPE_CHECKING:  # torch takes seconds to import
    from trimtab_export.variants.make import Workshop

BATCHES = 4
# Work of a training step, in forward passes of a layer: the student takes one forward, and twice as much
# backward.
STUDENT = 3
MILLION = 1_000_000
DIGITS = 2


def millions(minutes: float, layers: int, ffn: float, shop: "Workshop") -> float:
    """How many million tokens a student with so many layers, and this share of neurons, learns from in some
    minutes.

    Rounded to two digits, and the same again when an interrupted search resumes.
    """
    whole = len(anatomy.blocks(shop.source.backbone))
    width = (1 + 2 * ffn) / 3  # the feed-forward block is two thirds of a layer's work
    work = (whole + STUDENT * layers * width) / ((1 + STUDENT) * whole)
    count = minutes * 60 / (_seconds(shop) * work) / MILLION
    return float(f"{count:.{DIGITS}g}")


def _seconds(shop: "Workshop") -> float:
    """Seconds per token with the whole encoder as its own student; measured once and kept."""
    path: Path = shop.scratch / "pace.json"
    if path.is_file():
        return float(json.loads(path.read_text()))
    from trimtab_export.passes.heal import Lesson, trial
    from trimtab_export.passes.student import Student

    teacher = Student(shop.source.backbone, shop.source.head)
    batches = shop.mix(0)[:BATCHES]
    layers = len(anatomy.blocks(shop.source.backbone))
    steps = trial(teacher.copy(), Lesson(teacher, shop.mix, range(1, layers + 1), 1), batches)
    found = []
    next(steps)  # the first one allocates
    for batch in batches[1:]:
        started = time.monotonic()
        next(steps)
        found.append((time.monotonic() - started) / int(batch["attention_mask"].sum()))
    seconds = float(np.median(found))
    durable.replace(path, json.dumps(seconds).encode())
    return seconds
