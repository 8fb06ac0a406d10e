"""What is loaded is foreign until it has run: this runs it, in a process of its own that the server can end.

A tokenizer, an encoder's graph and an adapter's graph are opened and tried with inputs of many shapes, under
a limit of memory. What passes is what its manifest says, at least for these inputs; the server loads nothing
else.
"""

import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np
import tokenizers
from numpy.typing import NDArray

from trimtab.artifacts import reading
from trimtab_server.engine.batch import Ids, Model, Stored
from trimtab_server.engine.runners import runtime
from trimtab_server.engine.runners.maps import Map, MapSession
from trimtab_server.engine.runners.session import GraphError, OrtSession, UnusableError, providers

Step: TypeAlias = Callable[[], None]
Rows: TypeAlias = NDArray[np.float32]

# Memory beside what is there already: so much, and so many times the size of the files.
SPARE_BYTES = 2 << 30
GRAPH_FACTOR, TOKENIZER_FACTOR = 4, 40
NICENESS = 5  # others are being served meanwhile
# The longest text that a graph is tried with: one of 8,192 tokens would take minutes on a CPU.
LONG = 512
# The same texts in another order are the same vectors, but for rounding; a text alone is less alike where
# activations are quantised by the batch.
SAME_ORDER, SAME_ALONE = 0.99, 0.8
# The same run once more is the same; of what draws random numbers, it is not.
SAME_AGAIN = 0.9999
# How far from 1 the length of a vector of length 1 may be, in any precision.
UNIT = 0.01
TEXTS = (
    "",
    "a",
    " ",
    "\n",
    "The quick brown fox. " * 40,
    "Ünïcödé 日本語 😀 \u200b",
    "x" * 5000,
    "0 1 2 " * 300,
)
# The rows that a map is tried with, as many as a batch may bring.
ROWS = 32
TRIALS = 3


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """A tokenizer's file."""

    folder: Path
    file: Stored


class Graph(msgspec.Struct, frozen=True, tag=True):
    """An encoder's graph, on a kind of device; the fewest tokens of a text, and their highest id; how many
    first components of a row are a vector of length 1 (0: it may have any)."""

    model: Model
    kind: str
    index: int
    fewest: int
    highest: int
    unit: int = 0


class Adapter(msgspec.Struct, frozen=True, tag=True):
    """An adapter's graph."""

    map: Map


Piece: TypeAlias = Tokens | Graph | Adapter


class Finding(msgspec.Struct, frozen=True):
    """What was seen: of a tokenizer the fewest tokens and the highest id, of a map what a row costs."""

    fewest: int = 0
    highest: int = 0
    row_seconds: float = 0.0


def rehearse(piece: Piece, step: Step) -> Finding:
    """Try a piece; `step` is called before each of its steps. Raises what is wrong with it."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    match piece:
        case Tokens(file=file):
            with memory(TOKENIZER_FACTOR * file.size):
                return _tokens(piece, step)
        case Graph(model):
            size = sum(file.size for file in model.files)
            with memory(GRAPH_FACTOR * size):
                _graph(piece, step)
                return Finding()
        case Adapter(map):
            with memory(GRAPH_FACTOR * map.file.size):
                return rehearse_map(map, step)


@contextmanager
def memory(size: int) -> Iterator[None]:
    """Let this process take so much memory more, and what is spare; then as much as before."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + SPARE_BYTES + size, before[1]))
    try:
        yield
    except MemoryError:
        raise GraphError(f"takes more than {SPARE_BYTES + size} bytes of memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _tokens(piece: Tokens, step: Step) -> Finding:
    step()
    file = piece.file
    try:
        content = reading.content(piece.folder, file.path, file.size, file.sha256)
        tokenizer = tokenizers.Tokenizer.from_buffer(bytes(content))
    except reading.UnreadableError as error:
        raise GraphError(str(error)) from None
    except Exception as error:  # the library's errors have no class of their own
        raise GraphError(f"no tokenizer: {runtime.told(error)}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    highest = 0
    for text in TEXTS:
        step()
        highest = max([highest, *tokenizer.encode(text).ids])
    step()
    highest = max([highest, *tokenizer.get_vocab(with_added_tokens=True).values()])
    return Finding(fewest=len(tokenizer.encode("").ids), highest=highest)


def _graph(piece: Graph, step: Step) -> None:
    model = piece.model
    step()
    try:
        providers(piece.kind, piece.index)
        # An engine of TensorRT takes minutes to build, and says no more of a graph than CUDA.
        session = OrtSession(model, "cuda" if piece.kind == "tensorrt" else piece.kind, piece.index)
    except (GraphError, UnusableError):
        raise
    except Exception as error:  # ONNX Runtime's errors share no base
        raise GraphError(f"cannot be opened: {runtime.told(error)}") from None

    def text(length: int) -> Ids:
        """Ids from all over the vocabulary, its last one first."""
        ids = (piece.highest - 7919 * np.arange(length, dtype=np.int64)) % (piece.highest + 1)
        return ids.astype(np.int32)

    def run(lengths: Sequence[int]) -> Rows:
        step()
        lengths = [max(1, min(length, model.max_tokens)) for length in lengths]
        try:
            rows = session.run([text(length) for length in lengths])
        except GraphError:
            raise
        except Exception as error:  # as above
            raise GraphError(
                f"cannot be run on texts of {', '.join(map(str, lengths))} tokens, with ids from 0 to "
                f"{piece.highest}: {runtime.told(error)}"
            ) from None
        if not np.isfinite(rows).all():
            raise GraphError(f"gives values that are not finite for texts of {lengths} tokens")
        length = np.linalg.norm(rows[:, : piece.unit], axis=1) if piece.unit else np.ones(1)
        if np.abs(length - 1).max() > UNIT:
            raise GraphError(
                f"gives a vector of length {length[np.abs(length - 1).argmax()]:.3g}, and its manifest says "
                "that they are normalized"
            )
        return rows

    run([piece.fewest])
    run([LONG])
    mixed = [8, piece.fewest, 5, 16, 3]
    rows, turned = run(mixed), run(mixed[::-1])[::-1]
    if _likeness(rows, run(mixed)) < SAME_AGAIN:
        raise GraphError("gives a text another vector each time")
    if _likeness(rows, turned) < SAME_ORDER:
        raise GraphError("gives a text another vector when the texts stand in another order")
    if _likeness(rows[:1], run(mixed[:1])) < SAME_ALONE:
        raise GraphError("gives a text another vector when others stand beside it")


def rehearse_map(map: Map, step: Step) -> Finding:
    """Try an adapter's graph, in whatever process. Raises GraphError."""
    step()
    session = MapSession(map)
    random = np.random.default_rng(0).normal(size=(ROWS, session.width)).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    some = np.arange(ROWS, dtype=np.int64) % (len(map.groups) + 1)

    def run(rows: Rows, groups: NDArray[np.int64]) -> Rows:
        step()
        try:
            return session.run(rows, groups)
        except GraphError:
            raise
        except Exception as error:  # as above
            raise GraphError(f"cannot be run on {len(rows)} rows: {runtime.told(error)}") from None

    for rows in (random, abs(random), -abs(random), random[:1]):
        adapted = run(rows, some[: len(rows)])
        if not np.isfinite(adapted).all():
            raise GraphError("gives values that are not finite for rows of length 1")
        if _likeness(adapted, run(rows, some[: len(rows)])) < SAME_AGAIN:
            raise GraphError("gives a row another vector each time")
        turned = run(rows[::-1], some[: len(rows)][::-1])[::-1]
        if _likeness(adapted, turned) < SAME_ORDER:
            raise GraphError("gives a row another vector when the rows stand in another order")
    run(np.zeros_like(random), some)
    seconds = []
    for _ in range(TRIALS):
        begun = time.perf_counter()
        run(random, some)
        seconds.append(time.perf_counter() - begun)
    return Finding(row_seconds=min(seconds) / ROWS)


def _likeness(one: Rows, other: Rows) -> float:
    """The least cosine of two rows; those without length are like each other."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = np.abs(one - other).max(axis=1) < 1e-6
    cosines = np.where(same, 1.0, (one * other).sum(axis=1) / np.maximum(lengths, 1e-30))
    least: float = cosines.min()
    return least
