"""Measures the quality kept at every depth and width: each exit with its fitted head, each width on the
fitted axes.

This takes one pass of the first judging set through the graph with the inner states; nothing is written.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.cards import Cell
from trimtab_export.passes import exits
from trimtab_export.variants import fidelity, retrieval
from trimtab_export.variants.fidelity import Reference
from trimtab_export.variants.kept import Vectors
from trimtab_export.variants.make import Workshop

Floats: TypeAlias = NDArray[np.float32]

WIDTHS = (512, 256, 128, 64)


def measure(shop: Workshop, reference: Reference) -> tuple[Cell, ...]:
    """A cell for every number of layers from 1 on and every width; none if the layers were not found."""
    if shop.joined is None:
        return ()
    source, whole = reference.source, reference.vectors[0]
    rows = fidelity.embed_pairs(shop.joined, source, reference.collator, reference.sets[0])
    layers = exits.depth(shop.joined)
    full = source.dimensions
    best = retrieval.gains(whole.queries, whole.documents, source.similarity)[0].mean()
    hidden = (rows.queries.shape[1] - full) // (layers + 1)
    cells = []
    for depth in range(1, layers + 1):
        at_depth = whole
        if depth < layers:
            weight, bias = shop.exit_head(depth)
            part = slice(full, full + (depth + 1) * hidden)
            at_depth = Vectors(
                *(_finished(each[:, part] @ weight.T + bias, source.normalized) for each in _both(rows))
            )
        for width in (full, *(width for width in WIDTHS if width < full)):
            now, before = at_depth, whole
            if width < full:
                axes = shop.axes(width)
                now, before = (
                    Vectors(*(_finished(each @ axes, source.normalized) for each in _both(vectors)))
                    for vectors in (at_depth, whole)
                )
            own = retrieval.gains(now.queries, now.documents, source.similarity)[0].mean()
            across = retrieval.gains(now.queries, before.documents, source.similarity)[0].mean()
            cells.append(
                Cell(
                    layers=depth,
                    dimensions=width,
                    ndcg=round(float(own / max(best, 1e-9)), 4),
                    query_only_ndcg=round(float(across / max(best, 1e-9)), 4),
                )
            )
    return tuple(cells)


def _both(vectors: Vectors) -> tuple[Floats, Floats]:
    return vectors.queries, vectors.documents


def _finished(rows: Floats, normalized: bool) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit if normalized else rows
