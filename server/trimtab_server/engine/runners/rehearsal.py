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
from trimtab.values.column import Column, Columns, Values
from trimtab_server.engine.batch import Model, OutputSpec, Payload, Stored, collated
from trimtab_server.engine.runners import runtime
from trimtab_server.engine.runners.maps import Map, MapSession
from trimtab_server.engine.runners.onnx import OnnxRunner, providers
from trimtab_server.engine.runners.runner import GraphError, UnusableError

Step: TypeAlias = Callable[[], None]
Rows: TypeAlias = NDArray[np.float32]

# Memory beside what is there already: so much, and so many times the size of the files.
SPARE_BYTES = 2 << 30
GRAPH_FACTOR, TOKENIZER_FACTOR = 4, 40
NICENESS = 5  # others are being served meanwhile
# The longest item that a graph is tried with: a text of 8,192 tokens would take minutes on a CPU.
LONG = 512
# The same items in another order are the same, but for rounding; one alone is less alike where
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
    """An encoder's graph, on a kind of device."""

    model: Model
    kind: str
    index: int


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
        runner = OnnxRunner(model, "cuda" if piece.kind == "tensorrt" else piece.kind, piece.index)
    except (GraphError, UnusableError):
        raise
    except Exception as error:  # ONNX Runtime's errors share no base
        raise GraphError(f"cannot be opened: {runtime.told(error)}") from None

    def run(units: Sequence[int]) -> Columns:
        step()
        payloads = [model.sample(each) for each in units]
        try:
            result = runner.run(collated(payloads), model.names)
        except GraphError:
            raise
        except Exception as error:  # as above
            raise GraphError(
                f"cannot be run on {_described(payloads, model)}: {runtime.told(error)}"
            ) from None
        for spec in model.outputs:
            _check(result[spec.name], spec, _described(payloads, model))
        return result

    fewest = model.input.fewest
    run([fewest])
    run([LONG])
    mixed = [8, fewest, 5, 16, 3]
    result, turned = run(mixed), run(mixed[::-1])
    if _likeness(result, run(mixed)) < SAME_AGAIN:
        raise GraphError("gives an item another vector each time")
    if _likeness(result, turned, turned=True) < SAME_ORDER:
        raise GraphError("gives an item another vector when the items stand in another order")
    if _likeness(run(mixed[:1]), result) < SAME_ALONE:
        raise GraphError("gives an item another vector when others stand beside it")


def _check(column: Column, spec: OutputSpec, described: str) -> None:
    if not column.finite:
        raise GraphError(f"gives values that are not finite for {described}, as {spec.name}")
    length = np.linalg.norm(column.values, axis=1) if spec.unit else np.ones(1)
    if np.abs(length - 1).max() > UNIT:
        raise GraphError(
            f"gives a vector of length {length[np.abs(length - 1).argmax()]:.3g}, and its manifest says "
            "that they are normalized"
        )


def _described(payloads: Sequence[Payload], model: Model) -> str:
    return model.input.describe([payload.units for payload in payloads])


def _likeness(one: Columns, other: Columns, *, turned: bool = False) -> float:
    """The least cosine of an item in one result and in another, which may hold more; `turned`: in the other
    order."""
    least = 1.0
    for name, column in one.items():
        for place in range(len(column)):
            there = other[name].item(len(column) - 1 - place if turned else place)
            least = min(least, _alike(column.item(place), there))
    return least


def _alike(one: Values, other: Values) -> float:
    """The cosine of two items; those without length are like each other, and of another shape not at all."""
    return _rows_alike(one.reshape(1, -1), other.reshape(1, -1)) if one.shape == other.shape else 0.0


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
        if _rows_alike(adapted, run(rows, some[: len(rows)])) < SAME_AGAIN:
            raise GraphError("gives a row another vector each time")
        turned = run(rows[::-1], some[: len(rows)][::-1])[::-1]
        if _rows_alike(adapted, turned) < SAME_ORDER:
            raise GraphError("gives a row another vector when the rows stand in another order")
    run(np.zeros_like(random), some)
    seconds = []
    for _ in range(TRIALS):
        begun = time.perf_counter()
        run(random, some)
        seconds.append(time.perf_counter() - begun)
    return Finding(row_seconds=min(seconds) / ROWS)


def _rows_alike(one: Values, other: Values) -> float:
    """The least cosine of two rows; those without length are like each other."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = np.abs(one - other).max(axis=1, initial=0) < 1e-6
    cosines = np.where(same, 1.0, (one * other).sum(axis=1) / np.maximum(lengths, 1e-30))
    least: float = cosines.min()
    return least
