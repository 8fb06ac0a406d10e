"""Makes a variant of an encoder: cut, train, write in a precision; each step only if it is asked for."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import durable
from trimtab.artifacts.manifest import Passes
from trimtab.errors import ExportError
from trimtab_export.graph import head, states, to_onnx, unpad
from trimtab_export.passes import anatomy, blocks, exits, half, quantize
from trimtab_export.source import Source
from trimtab_export.tokens import Collator
from trimtab_export.variants import fidelity, recipe
from trimtab_export.variants.mix import Mix
from trimtab_export.variants.retrieval import Pairs

if TYPE_CHECKING:  # torch takes seconds to import
    from trimtab_export.passes.curve import Point
    from trimtab_export.passes.student import Student

Floats: TypeAlias = NDArray[np.float32]

LONGEST = 128  # tokens of a text in training and calibration
CALIBRATION = 256  # texts to choose by, and to measure ranges on
REPAIR_TOKENS = 80_000
BATCH = 16
RANKING = 8  # texts of each kind to rank the layers on
MOST_GONE = 0.5  # of the layers
FITTING = 6000  # texts to fit the heads of exits and the axes on, in closed form
MILLION = 1_000_000
ROLES = 2
# Files kept between runs.
VECTORS, STATES = "vectors.npy", "states.npy"
HEALING = "healing.safetensors"


@dataclass(frozen=True)
class Workshop:
    """What variants are made from.

    `graph` is the encoder's own, float32, in its final form, and `joined` the same with pooled inner states,
    if its layers were found; `kinds` are unlabelled texts by their kind; `watched` are pairs of another kind,
    to follow the training by; `scratch` is a folder for what is worth keeping between runs.
    """

    source: Source
    graph: Path
    joined: Path | None
    kinds: Sequence[Sequence[str]]
    watched: Pairs | None
    scratch: Path

    @cached_property
    def collator(self) -> Collator:
        """Makes batches of texts that are cut short, to save time in training."""
        return Collator(self.source.tokenizer, min(self.source.max_tokens, LONGEST))

    @cached_property
    def prompted(self) -> list[str]:
        """Texts of all kinds in turns, with their prompts, in both roles; at most FITTING."""
        turns = [text for row in zip_longest(*self.kinds) for text in row if text is not None]
        return [self._in_role(number, text) for number, text in enumerate(turns[:FITTING])]

    def _in_role(self, number: int, text: str) -> str:
        prompts = (self.source.prompts.query, self.source.prompts.passage)
        # Pairs are adjacent, and kinds come in turns: no kind must get only one role.
        return prompts[(number // max(1, len(self.kinds))) % ROLES] + text

    @cached_property
    def mix(self) -> Mix:
        """The texts to train on."""
        return Mix(self.kinds, self.source.prompts, self.collator, self.source.tokenizer)

    @cached_property
    def calibration(self) -> list[dict[str, NDArray[np.int64]]]:
        """Batches of texts of similar lengths, so that padding hardly affects what is measured."""
        texts = sorted(self.prompted[:CALIBRATION], key=self.collator.count)
        return [self.collator(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]

    @cached_property
    def repair(self) -> list[dict[str, NDArray[np.int64]]]:
        """Batches of the mix, for fits in closed form: many more tokens than neurons."""
        return self.mix.tokens(REPAIR_TOKENS)

    @cached_property
    def vectors(self) -> Floats:
        """The encoder's vectors of `prompted`, float32 (texts, dimensions); kept between runs."""
        if self.joined is not None and (self.scratch / STATES).is_file():
            return self.rows(self.joined)[:, : self.source.dimensions]
        return self._kept(VECTORS, self.graph)

    def rows(self, joined: Path) -> Floats:
        """The vectors with the pooled inner states; kept between runs."""
        return self._kept(STATES, joined)

    @property
    def mixed(self) -> dict[str, NDArray[np.int64]]:
        """A batch of texts of different lengths."""
        return self.collator(self.prompted[:CALIBRATION:BATCH])

    def exit_head(self, layers: int) -> tuple[Floats, Floats]:
        """The fitted head of the exit after so many layers: see `exits.fit`."""
        assert self.joined is not None  # noqa: S101
        rows, dimensions = self.rows(self.joined), self.source.dimensions
        hidden = (rows.shape[1] - dimensions) // (exits.depth(self.joined) + 1)
        end = dimensions + (layers + 1) * hidden
        return exits.fit(rows[:, dimensions:end], rows[:, :dimensions])

    def axes(self, width: int) -> Floats:
        """The principal axes of the vectors: (dimensions, width). If lengths matter, they preserve them."""
        return exits.basis(self.vectors, width, exits.WHITENING if self.source.normalized else 0.0)

    def _kept(self, name: str, graph: Path) -> Floats:
        path = self.scratch / name
        if path.is_file():
            kept: Floats = np.load(path, allow_pickle=False)
            return kept
        vectors = fidelity.embed(graph, self.collator, self.prompted)
        with durable.replacing(path) as stream:
            np.save(stream, vectors)
        return vectors

    @cached_property
    def layer_order(self) -> list[int]:
        """The numbers of half of the layers, in the order in which they can be removed; kept between runs."""
        from trimtab_export.passes.prune import rank_layers
        from trimtab_export.passes.student import Student

        path = self.scratch / "layers.json"
        if path.is_file():
            return list(json.loads(path.read_text()))
        student = Student(self.source.backbone, self.source.head)
        kinds = [
            [self.collator([self._in_role(number, text) for number, text in enumerate(kind[:RANKING])])]
            for kind in self.kinds
        ]
        order = rank_layers(student, kinds, round(MOST_GONE * len(anatomy.blocks(student.backbone))))
        durable.replace(path, json.dumps(order).encode())
        return order


def build(passes: Passes, shop: Workshop, folder: Path, tell: Callable[[str], object]) -> tuple[Path, ...]:
    """Write the variant into `folder`: its files, the graph first.

    Raises ExportError, naming the pass, if one cannot be applied to this encoder.
    """
    recipe.check(passes)
    graph = shop.graph
    if recipe.leaves(passes):
        graph = _exit(passes, shop, tell)
    elif recipe.cuts(passes) or passes.heal:
        graph = _cut(passes, shop, tell)
    match passes.precision:
        case "fp32":
            shutil.copytree(graph.parent, folder, dirs_exist_ok=True)
            return folder / head.GRAPH, folder / head.WEIGHTS
        case "int8":
            return quantize.to_int8(graph, shop.calibration, folder)
        case "int8-weights" | "int4-weights":
            return blocks.to_blocks(graph, folder, bits=8 if passes.precision == "int8-weights" else 4)
        case "int8-qdq":
            return quantize.to_qdq(graph, shop.calibration, folder)
        case "fp16":
            return half.to_fp16(graph, folder)
        case "bf16":
            return (half.to_bf16 if passes.runner == "onnx" else half.to_openvino)(graph, folder)


def _cut(passes: Passes, shop: Workshop, tell: Callable[[str], object]) -> Path:
    """The float32 graph of the cut and healed encoder; kept in the scratch folder, named by what was cut."""
    from trimtab_export.passes import shrp
    from trimtab_export.passes.low_rank import low_rank
    from trimtab_export.passes.prune import prune
    from trimtab_export.passes.student import Student

    anatomy.architecture(shop.source.backbone)
    folder = shop.scratch / label(passes)
    finished = folder / "graph" / head.GRAPH
    if finished.is_file():
        return finished
    shutil.rmtree(folder / "making", ignore_errors=True)
    student = Student(shop.source.backbone, shop.source.head).copy()
    targets = anatomy.targets(passes.layers, len(anatomy.blocks(student.backbone)))
    prune(student, shop.calibration, shop.repair, layers=passes.layers, heads=passes.heads, ffn=passes.ffn)
    folder.mkdir(parents=True, exist_ok=True)
    if passes.shrp != 1:
        whole = student.copy()
        shrp.replace(student, shop.calibration)
        _train(student, targets, passes.heal, shop, folder / "routing.safetensors", tell)
        kept = shrp.prune(student, whole, shop.calibration, passes.shrp)
        tell(f"heads that stay, by layer: {', '.join(map(str, kept))}")
    if passes.low_rank != 1:
        ranks = low_rank(student, shop.calibration, passes.low_rank)
        tell(f"{len(ranks.thin)} layers are thin now, {ranks.whole} would cost more and stay whole")
    if passes.heal:
        _train(student, targets, passes.heal, shop, folder / HEALING, tell)
    graph = _graph(student.backbone, shop, folder / "making")
    unpad.take_padding_out(graph, shop.mixed)
    (folder / "making").rename(folder / "graph")
    return finished


def _train(
    student: "Student",
    targets: Sequence[int] | None,
    millions: float,
    shop: Workshop,
    progress: Path,
    tell: Callable[[str], object],
) -> None:
    """Heal the student on so many million tokens: see `heal.Lesson` for its targets."""
    from trimtab_export.passes.heal import Lesson, heal
    from trimtab_export.passes.student import Student
    from trimtab_export.variants.monitor import TrainingMonitor

    source = shop.source
    teacher = Student(source.backbone, source.head)
    look = TrainingMonitor(teacher, shop.watched, source, shop.collator) if shop.watched is not None else None
    lesson = Lesson(teacher, shop.mix, targets, max(1, round(MILLION * millions)), look)
    heal(student, lesson, progress, tell)


def _graph(backbone: Any, shop: Workshop, folder: Path) -> Path:
    """Write the graph of a changed backbone with the source's head into `folder`."""
    changed = replace(shop.source, backbone=backbone)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as onnx:
        states_graph = to_onnx.states_graph(changed, Path(onnx))
        return head.graft_dense(states_graph, changed.head, changed.dimensions, folder)[0]


def _exit(passes: Passes, shop: Workshop, tell: Callable[[str], object]) -> Path:
    """The float32 graph up to an exit, in the requested width; kept in the scratch folder."""
    folder = shop.scratch / label(passes)
    finished = folder / "graph" / head.GRAPH
    if finished.is_file():
        return finished
    if shop.joined is None:
        raise ExportError(
            f"exits and widths read the inner states, and the layers of {shop.source.architecture} were not "
            "found in its graph"
        )
    joined, fitted = shop.joined, None
    shutil.rmtree(folder / "making", ignore_errors=True)
    if passes.exit is not None:
        layers = exits.depth(joined)
        if not 1 <= passes.exit < layers:
            raise ExportError(
                f"exit = {passes.exit}: give 1 to {layers - 1}, of the encoder's {layers} layers"
            )
        fitted = shop.exit_head(passes.exit)
        if passes.heal:
            joined, fitted = _healed_exit(passes, fitted, shop, tell)
    elif passes.heal:
        raise ExportError("heal goes with exit, or with what cuts the encoder: a width has nothing to heal")
    axes = shop.axes(passes.width) if passes.width is not None else None
    exits.write(joined, passes.exit, fitted, axes, normalize=shop.source.normalized, folder=folder / "making")
    (folder / "making").rename(folder / "graph")
    return finished


def _healed_exit(
    passes: Passes, fitted: tuple[Floats, Floats], shop: Workshop, tell: Callable[[str], object]
) -> tuple[Path, tuple[Floats, Floats]]:
    """The layers up to the exit and their head, trained together, whatever the width.

    Returns the graph with pooled inner states, and the head.
    """
    from trimtab_export.passes.student import EarlyStudent

    assert passes.exit is not None  # noqa: S101
    anatomy.architecture(shop.source.backbone)
    backbone = copy.deepcopy(shop.source.backbone)
    anatomy.keep_layers(backbone, tuple(range(passes.exit)))
    student = EarlyStudent(backbone, shop.source.head, fitted)
    folder = shop.scratch / f"exit-{passes.exit}.heal-{passes.heal:g}"
    folder.mkdir(parents=True, exist_ok=True)
    _train(student, None, passes.heal, shop, folder / HEALING, tell)
    shutil.rmtree(folder / "layers", ignore_errors=True)
    graph = _graph(backbone, shop, folder / "layers")
    layers = states.hidden_states(graph, backbone, shop.mixed)
    if len(layers) != passes.exit + 1:
        raise ExportError(f"the {passes.exit} layers were not found again in the trained graph")
    joined = states.write(graph, layers)
    unpad.take_padding_out(joined, shop.mixed)
    return joined, student.fitted


def curve(passes: Passes, shop: Workshop) -> "list[Point]":
    """A variant's training curve; empty if it was not trained."""
    from trimtab_export.passes import progress

    folder = f"exit-{passes.exit}.heal-{passes.heal:g}" if passes.exit is not None else label(passes)
    return progress.curve(shop.scratch / folder / HEALING)


def label(passes: Passes) -> str:
    """The name of the folder for what was cut and trained, which variants of several precisions share."""
    layers = "all" if passes.layers is None else "-".join(map(str, passes.layers))
    cut = f"layers-{layers}.heads-{passes.heads:g}.ffn-{passes.ffn:g}.rank-{passes.low_rank:g}"
    return f"{cut}.shrp-{passes.shrp:g}.heal-{passes.heal:g}.exit-{passes.exit}.width-{passes.width}"
