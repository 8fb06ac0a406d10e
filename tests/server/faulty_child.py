"""The program of a device's own process, whose sessions do to it what a text or an encoder asks for."""

import ctypes
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.server.fingerprint import fingerprint
from tests.server.models_made import Ids, TextRunner
from trimtab_server.engine.batch import Model
from trimtab_server.engine.runners import child

ROOT = Path(__file__).parents[2]
PROGRAM = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.server.faulty_child import main; main()",
)
# The lengths of the texts that do it, in tokens.
CRASHES, RAISES, HANGS, LEAKS = 50, 51, 52, 53
LEAK_BYTES = 128 << 20
DEADLY = "deadly"  # an encoder that ends the process that loads it
leaked: list[np.ndarray] = []


class Session(TextRunner):
    """Vectors that name their text."""

    def __init__(self, model: Model, kind: str, index: int, workers: int) -> None:
        if model.encoder == DEADLY:
            ctypes.string_at(0)

    def vectors(self, ids: Sequence[Ids]) -> np.ndarray:
        lengths = {len(each) for each in ids if each.any()}  # the warm-up's are of padding
        if CRASHES in lengths:
            ctypes.string_at(0)
        if RAISES in lengths:
            raise RuntimeError("poison")
        if HANGS in lengths:
            threading.Event().wait()
        if LEAKS in lengths:
            leaked.append(np.ones(LEAK_BYTES, np.uint8))
        return np.stack([fingerprint(each) for each in ids])


def main() -> None:
    """Serve the server that has started it."""
    child.main(Session)
