"""A graph that gives more than a vector: of each text its different ids and how often each comes, which are
several rows, and a row with its length and their sum. It runs in a process of its own, too.
"""

import sys
from pathlib import Path

import numpy as np

from tests.server.models_made import Ids
from trimtab.inputs.text import TextInput
from trimtab.values.column import Column, Columns, stacked
from trimtab_server.engine.batch import Model, OutputSpec, Wanted
from trimtab_server.engine.runners import child

ROOT = Path(__file__).parents[2]
PROGRAM = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.server.toy import main; main()",
)
POISON = 666  # an id that fails whatever runs with it
SPARSE: Wanted = ("counts", "indices")


def model() -> Model:
    outputs = (
        OutputSpec("indices", "words", dtype="int32", several=True),
        OutputSpec("counts", "words", dtype="float32", several=True),
        OutputSpec("sums", "sums", 2),
    )
    return Model("toy", 1, "fp32", Path("none"), (), TextInput(), outputs, 64)


def expected(ids: Ids, wanted: Wanted) -> dict[str, np.ndarray]:
    """What it gives of one text."""
    indices, counts = np.unique(ids, return_counts=True)
    found = {
        "indices": indices.astype(np.int32),
        "counts": counts.astype(np.float32),
        "sums": np.array([len(ids), ids.sum()], np.float32),
    }
    return {name: found[name] for name in wanted}


class Runner:
    """Remembers how many items each of its runs had, and what was wanted of them."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, Wanted]] = []

    def run(self, batch: Columns, wanted: Wanted) -> Columns:
        ids = batch["ids"]
        self.runs.append((len(ids), wanted))
        if (ids.values == POISON).any():
            raise RuntimeError("poison")
        items = [expected(ids.item(place), wanted) for place in range(len(ids))]
        return {
            name: Column(np.stack([each[name] for each in items]))
            if name == "sums"
            else stacked([each[name] for each in items])
            for name in wanted
        }


def main() -> None:
    """Serve the server that has started it."""
    child.main(lambda model, kind, index, workers: Runner())
