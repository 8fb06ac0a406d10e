"""Early exits and narrower vectors: depth x width, as in 2D Matryoshka embeddings, without training.

An encoder that was not trained to stop early has no usable embedding in its early layers. So each exit gets a
head, fitted in closed form: ridge regression from the mean states of all layers up to the exit to the whole
encoder's vectors of the same texts. A narrower vector is the projection on the principal axes of the
encoder's vectors. That keeps more than cutting vectors does, and still more if the strong axes are damped a
little: part of the whitening of Su et al., 2021 (arXiv:2103.15316). Li et al., 2024 (arXiv:2402.14776) train
for both.
"""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from trimtab.errors import ExportError
from trimtab_export.graph import editing
from trimtab_export.graph.head import GRAPH, OUTPUT, declare_outputs, new_head, save
from trimtab_export.source import Dense

Floats: TypeAlias = NDArray[np.float32]

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean variance; the best one on held-out texts is taken
LEFT_OUT = 5  # one in so many texts is held out
# The power of an axis' variance that it is divided by: 0 projects, 0.5 whitens. Two encoders kept
# most of their nDCG@10 between 0.15 and 0.3, at every width: at a third of it .01 more than without.
WHITENING = 0.2


def basis(vectors: Floats, width: int, whitening: float = 0.0) -> Floats:
    """The first principal axes of vectors (n, dimensions), not centred, as columns: (dimensions, width).

    Without `whitening`, all have length 1; with it, the first has, and weaker axes are longer.
    """
    if not 1 <= width < vectors.shape[1]:
        raise ExportError(f"width = {width}: give less than the encoder's {vectors.shape[1]} dimensions")
    values, axes = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)
    strengths = np.maximum(values[::-1][:width], 1e-6 * values[-1]) / values[-1]
    columns: Floats = (axes[:, ::-1][:, :width] * strengths**-whitening).astype(np.float32)
    return columns


def fit(states: Floats, vectors: Floats) -> tuple[Floats, Floats]:
    """The head of an exit: the weight (out, in) and bias (out,) that best predict `vectors` from `states`.

    Args:
        states: float32 (n, layers * hidden), of texts; with fewer texts than columns, the head is poor.
        vectors: float32 (n, out), the whole encoder's of the same texts.
    """
    middle, spread = states.mean(axis=0), states.std(axis=0) + 1e-6
    inputs = np.concatenate([(states - middle) / spread, np.ones((len(states), 1), np.float32)], axis=1)
    out = np.arange(len(inputs)) % LEFT_OUT == 0
    kept, wanted = inputs[~out].astype(np.float64), vectors[~out].astype(np.float64)
    values, axes = np.linalg.eigh(kept.T @ kept)
    turned = axes.T @ (kept.T @ wanted)
    best, solution = -np.inf, turned
    for ridge in RIDGES:
        tried = axes @ (turned / (np.maximum(values, 0) + ridge * len(kept))[:, None])
        score = _cosine(inputs[out] @ tried, vectors[out])
        if score > best:
            best, solution = score, tried
    weight = solution[:-1] / spread[:, None]
    bias = solution[-1] - middle @ weight
    return weight.T.astype(np.float32), bias.astype(np.float32)


def write(
    joined: Path, layers: int | None, head: tuple[Floats, Floats] | None, axes: Floats | None, *,
    normalize: bool, folder: Path,
) -> tuple[Path, ...]:  # fmt: skip
    """Write `folder`/model.onnx, the encoder up to an exit and as wide as `axes`; its files, the graph first.

    Args:
        joined: the graph with pooled inner states: see `states.write`.
        layers: how many layers are computed; None: all, with the encoder's own head.
        head: what `fit` returned for that exit.
        axes: what `basis` returned; None: the whole width.
        normalize: whether vectors have length 1.
    """
    model = onnx.load(str(joined))
    graph = model.graph
    tensor, *pooled = _joined(graph)
    grafter, _ = new_head(model, "joined")
    if head is not None and layers is not None:
        tensor = grafter.dense(grafter.concat(pooled[: layers + 1]), Dense(*head, "Identity"))
    if axes is not None:
        tensor = grafter.dense(tensor, Dense(np.ascontiguousarray(axes.T), None, "Identity"))
    grafter.give(grafter.normalize(tensor) if normalize else tensor)
    declare_outputs(graph, "dimensions")
    editing.drop_unused(graph)
    return save(model, folder / GRAPH)


def depth(joined: Path) -> int:
    """How many layers the graph with pooled inner states has."""
    graph = onnx.load(str(joined), load_external_data=False).graph
    return len(_joined(graph)) - 2  # without the embedding and the embedding layer


def _joined(graph: Any) -> list[str]:
    """The tensors that a graph with pooled inner states puts side by side: the embedding, then the states."""
    (last,) = [node for node in graph.node if OUTPUT in node.output]
    (concat,) = [node for node in graph.node if last.input[0] in node.output]
    return list(concat.input)


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())
