"""Models, payloads and runners as tests make them up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.inputs.text import TextInput
from trimtab.values.column import Column, Columns
from trimtab_server.engine.batch import HashedFile, Model, OutputSpec, Payload, Wanted

Ids = NDArray[np.int32]
ALONE: Wanted = ("dense",)


def model(
    name: str = "a",
    *,
    folder: Path = Path("none"),
    files: tuple[HashedFile, ...] = (),
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
    dimensions: int = 8,
    most: int = 512,
    **changes: Any,
) -> Model:
    """A graph of texts, with a dense vector of each."""
    outputs = changes.pop("outputs", (OutputSpec("dense", "embeddings", dimensions),))
    return Model(name, 1, "fp32", folder, files, TextInput(inputs), outputs, most, **changes)


def payload(ids: Ids) -> Payload:
    """A text."""
    return Payload({"ids": ids}, len(ids), ids.tobytes())


def batch(*texts: Ids) -> Columns:
    """Texts, as a runner gets them."""
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in texts])])
    return {"ids": Column(np.concatenate(texts), offsets)}


class TextRunner:
    """Runs texts as ids, and makes a row of each: float32 (n, dimensions), whatever is wanted."""

    def run(self, batch: Columns, wanted: Wanted) -> Columns:
        ids = batch["ids"]
        return {"dense": Column(self.vectors([ids.item(place) for place in range(len(ids))]))}

    def vectors(self, ids: Sequence[Ids]) -> Any:
        raise NotImplementedError
