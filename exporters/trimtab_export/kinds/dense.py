"""Dense: the vectors that every export has. `trimtab_export.graph.head` makes them."""

from trimtab.artifacts.manifest import Output
from trimtab_export.source import Source


def declare(source: Source, int8_limit: float) -> Output:
    """The vectors of an encoder; their space is named later."""
    return Output(
        name="dense",
        kind="dense",
        space="",
        space_parts=source.space_parts,
        dimensions=source.dimensions,
        similarity=source.similarity,
        pooling=source.head.pooling,
        normalized=source.normalized,
        int8_limit=int8_limit,
    )
