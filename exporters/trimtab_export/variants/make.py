"""Make a variant of an encoder: cut, train, write in a precision; each step only where it is asked for."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.bundle import Passes
from trimtab.errors import ExportError
from trimtab_export.graph import head, to_onnx, unpad
from trimtab_export.passes import anatomy, exits, half, quantize
from trimtab_export.source import Source
from trimtab_export.tokens import Batcher
from trimtab_export.variants import fidelity

Floats: TypeAlias = NDArray[np.float32]

LONGEST = 128  # tokens of a text in training and calibration
CALIBRATION = 256  # texts to choose, to repair and to take ranges by
BATCH = 16
RANKING = 4  # every so many of the calibration's batches rank the layers
ROLES = 2


@dataclass(frozen=True)
class Workshop:
    """What variants are made from.

    `graph` is the encoder's own, float32, in its final form, and `joined` the same with pooled inner states,
    where its layers were found; `texts` are unlabelled, those of calibration
    first; `scratch` is a folder for what is worth keeping between runs.
    """

    source: Source
    graph: Path
    joined: Path | None
    texts: Sequence[str]
    scratch: Path

    @cached_property
    def batcher(self) -> Batcher:
        """Cuts texts short, since training takes the time that it takes."""
        return Batcher(self.source.tokenizer, min(self.source.max_tokens, LONGEST))

    @cached_property
    def prompted(self) -> list[str]:
        """The texts as the encoder sees them, in both roles by turns."""
        prompts = (self.source.prompts.query, self.source.prompts.passage)
        return [prompts[number % ROLES] + text for number, text in enumerate(self.texts)]

    @cached_property
    def calibration(self) -> list[dict[str, NDArray[np.int64]]]:
        """Batches of texts of alike lengths, so that pads stay out of what is measured."""
        texts = sorted(self.prompted[:CALIBRATION], key=self.batcher.count)
        return [self.batcher(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]

    @cached_property
    def vectors(self) -> Floats:
        """The encoder's vectors of `prompted`, float32 (texts, dimensions); kept between runs."""
        return self._kept("vectors", self.graph)

    def rows(self, joined: Path) -> Floats:
        """The vectors and the pooled inner states beside them; kept between runs."""
        return self._kept("states", joined)

    def axes(self, width: int) -> Floats:
        """The principal axes of the vectors: (dimensions, width)."""
        return exits.basis(self.vectors, width)

    def _kept(self, name: str, graph: Path) -> Floats:
        path = self.scratch / f"{name}.npy"
        if path.is_file():
            kept: Floats = np.load(path, allow_pickle=False)
            return kept
        vectors = fidelity.embed(graph, self.batcher, self.prompted)
        partial = self.scratch / f"{name}.partial.npy"
        np.save(partial, vectors)
        partial.replace(path)
        return vectors

    def layer_order(self) -> list[int]:
        """The layers' numbers in the order in which they can go; kept between runs."""
        from trimtab_export.passes.prune import rank_layers
        from trimtab_export.passes.student import Student

        path = self.scratch / "layers.json"
        if path.is_file():
            return list(json.loads(path.read_text()))
        student = Student(self.source.backbone, self.source.head)
        order = rank_layers(student, self.calibration[::RANKING])
        path.write_text(json.dumps(order))
        return order


def build(passes: Passes, shop: Workshop, folder: Path, tell: Callable[[str], object]) -> tuple[Path, ...]:
    """Write the variant into `folder`: its files, the graph first.

    Raises ExportError where a pass cannot be done to this encoder, by name.
    """
    leaves = passes.exit is not None or passes.width is not None
    if passes.precision == "fp32" and not cuts(passes) and not leaves:
        raise ExportError(f"the variant {passes.name} would be the encoder as it is: give it a pass")
    if cuts(passes) and leaves:
        raise ExportError(
            "exit and width leave the encoder itself early or narrow: they go with a precision, not with "
            "layers, heads, ffn or heal"
        )
    graph = shop.graph
    if cuts(passes):
        graph = _cut(passes, shop, tell)
    elif leaves:
        graph = _exit(passes, shop)
    match passes.precision:
        case "fp32":
            shutil.copytree(graph.parent, folder, dirs_exist_ok=True)
            return folder / head.GRAPH, folder / head.WEIGHTS
        case "int8":
            return quantize.to_int8(graph, shop.calibration, folder)
        case "int8-weights":
            return quantize.to_blocks(graph, folder, bits=8)
        case "int4-weights":
            return quantize.to_blocks(graph, folder, bits=4)
        case "fp16":
            return half.to_fp16(graph, folder)


def cuts(passes: Passes) -> bool:
    """Whether the weights change before they are written."""
    return bool(passes.layers is not None or passes.heads != 1 or passes.ffn != 1 or passes.heal)


def _cut(passes: Passes, shop: Workshop, tell: Callable[[str], object]) -> Path:
    """The float32 graph of the cut and healed encoder; kept in the scratch folder, by what was cut."""
    from trimtab_export.passes.heal import heal
    from trimtab_export.passes.prune import prune
    from trimtab_export.passes.student import Student

    anatomy.architecture(shop.source.backbone)
    folder = shop.scratch / label(passes)
    finished = folder / "graph" / head.GRAPH
    if finished.is_file():
        return finished
    shutil.rmtree(folder / "making", ignore_errors=True)
    student = Student(shop.source.backbone, shop.source.head).copy()
    prune(student, shop.calibration, layers=passes.layers, heads=passes.heads, ffn=passes.ffn)
    folder.mkdir(parents=True, exist_ok=True)
    if passes.heal:
        heal(
            student,
            shop.prompted,
            shop.vectors,
            shop.batcher,
            epochs=passes.heal,
            progress=folder / "healing.safetensors",
            tell=tell,
        )
    cut = replace(shop.source, backbone=student.backbone)
    with TemporaryDirectory(dir=folder) as onnx:
        backbone = to_onnx.states_graph(cut, Path(onnx))
        files = head.graft(backbone, cut.head, cut.dimensions, folder / "making")
    unpad.take_padding_out(files[0], shop.batcher(shop.prompted[:CALIBRATION:BATCH]))
    (folder / "making").rename(folder / "graph")
    return finished


def _exit(passes: Passes, shop: Workshop) -> Path:
    """The float32 graph up to an exit, as wide as asked for; kept in the scratch folder."""
    folder = shop.scratch / label(passes)
    finished = folder / "graph" / head.GRAPH
    if finished.is_file():
        return finished
    if shop.joined is None:
        raise ExportError(
            f"exits and widths read the inner states, and the layers of {shop.source.architecture} were not "
            "found in its graph"
        )
    fitted = None
    if passes.exit is not None:
        layers = exits.depth(shop.joined)
        if not 1 <= passes.exit < layers:
            raise ExportError(
                f"exit = {passes.exit}: give 1 to {layers - 1}, of the encoder's {layers} layers"
            )
        rows = shop.rows(shop.joined)
        dimensions = shop.source.dimensions
        hidden = (rows.shape[1] - dimensions) // (layers + 1)
        end = dimensions + (passes.exit + 1) * hidden
        fitted = exits.fit(rows[:, dimensions:end], rows[:, :dimensions])
    axes = shop.axes(passes.width) if passes.width is not None else None
    shutil.rmtree(folder / "making", ignore_errors=True)
    exits.write(
        shop.joined, passes.exit, fitted, axes, normalize=shop.source.normalized, folder=folder / "making"
    )
    (folder / "making").rename(folder / "graph")
    return finished


def label(passes: Passes) -> str:
    """What was cut and trained, as a name of a folder: variants of several precisions share it."""
    layers = "all" if passes.layers is None else "-".join(map(str, passes.layers))
    left = f".exit-{passes.exit}.width-{passes.width}"
    return f"layers-{layers}.heads-{passes.heads:g}.ffn-{passes.ffn:g}.heal-{passes.heal}{left}"
