"""Tries foreign files before they are loaded, in a separate process that the server can kill.

A processor (such as a tokenizer), an encoder's graph and an adapter's graph are opened and run with inputs of
many shapes, under a memory limit. What passes does what its manifest says, at least for these inputs; the
server loads nothing else.
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
from numpy.typing import NDArray

from trimtab.artifacts import reading
from trimtab.inputs.known import INPUTS
from trimtab.values.column import Column, Columns, Values
from trimtab_server.engine.batch import HashedFile, Model, OutputSpec, Payload, collated
from trimtab_server.engine.runners import runtime
from trimtab_server.engine.runners.adapter_graph import AdapterGraph, AdapterSession
from trimtab_server.engine.runners.onnx import providers
from trimtab_server.engine.runners.opening import open_graph
from trimtab_server.engine.runners.runner import GraphError, UnusableError

Step: TypeAlias = Callable[[], None]
Rows: TypeAlias = NDArray[np.float32]

# Additional memory: a fixed amount, and a multiple of the size of the files.
SPARE_BYTES = 2 << 30
GRAPH_FACTOR, PROCESSOR_FACTOR = 4, 40
NICENESS = 5  # others are being served meanwhile
# The longest item that a graph is tried with: a text of 8,192 tokens would take minutes on a CPU.
LONG = 512
# Least cosines: of the same items in another order, which differ by rounding; and of an item alone, which
# differs more if activations are quantised by batch.
SAME_ORDER, SAME_ALONE = 0.99, 0.8
# Least cosine of the same run repeated: graphs that draw random numbers do not reach it.
SAME_AGAIN = 0.9999
# How far the length of a normalised vector may be from 1, in any precision.
UNIT = 0.01
# The rows that an adapter is tried with, as many as a batch may bring.
ROWS = 32
TRIALS = 3


class ProcessorPiece(msgspec.Struct, frozen=True, tag=True):
    """The file that prepares a kind of input, such as a tokenizer."""

    kind: str
    folder: Path
    file: HashedFile


class GraphPiece(msgspec.Struct, frozen=True, tag=True):
    """An encoder's graph, on a kind of device."""

    model: Model
    kind: str
    index: int


class AdapterPiece(msgspec.Struct, frozen=True, tag=True):
    """An adapter's graph."""

    graph: AdapterGraph


Piece: TypeAlias = ProcessorPiece | GraphPiece | AdapterPiece


class RehearsalResult(msgspec.Struct, frozen=True):
    """What a rehearsal found: of a processor, an item's fewest units and the highest id; of an adapter, a
    row's cost."""

    fewest: int = 0
    highest: int = 0
    row_seconds: float = 0.0


def rehearse(piece: Piece, step: Step) -> RehearsalResult:
    """Try a piece; `step` is called before each of its steps. Raises what is wrong with it."""
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    match piece:
        case ProcessorPiece(file=file):
            with memory(PROCESSOR_FACTOR * file.size):
                return _processor(piece, step)
        case GraphPiece(model):
            size = sum(file.size for file in model.files)
            with memory(GRAPH_FACTOR * size):
                _graph(piece, step)
                return RehearsalResult()
        case AdapterPiece(graph):
            with memory(GRAPH_FACTOR * graph.file.size):
                return rehearse_adapter(graph, step)


@contextmanager
def memory(size: int) -> Iterator[None]:
    """Limit this process to so much more memory, and SPARE_BYTES; afterwards, to as much as before."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + SPARE_BYTES + size, before[1]))
    try:
        yield
    except MemoryError:
        raise GraphError(f"takes more than {SPARE_BYTES + size} bytes of memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _processor(piece: ProcessorPiece, step: Step) -> RehearsalResult:
    step()
    file = piece.file
    try:
        content = reading.content(piece.folder, file.path, file.size, file.sha256)
        tried = INPUTS[piece.kind].rehearse(bytes(content), step)
    except (reading.UnreadableError, ValueError) as error:
        raise GraphError(runtime.told(error)) from None
    return RehearsalResult(tried.fewest, tried.highest)


def _graph(piece: GraphPiece, step: Step) -> None:
    model = piece.model
    step()
    try:
        providers(piece.kind, piece.index)
        # A TensorRT engine takes minutes to build, and tells no more about a graph than CUDA.
        kind = "cuda" if piece.kind == "tensorrt" else piece.kind
        runner = open_graph(model, kind, piece.index, workers=1)
    except (GraphError, UnusableError):
        raise
    except Exception as error:  # the runtimes' errors share no base
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
    if likeness(model, result, run(mixed)) < SAME_AGAIN:
        raise GraphError("gives an item a different vector each time")
    if likeness(model, result, turned, turned=True) < SAME_ORDER:
        raise GraphError("gives an item a different vector when the items are in another order")
    if likeness(model, run(mixed[:1]), result) < SAME_ALONE:
        raise GraphError("gives an item a different vector when others are in its batch")


def _check(column: Column, spec: OutputSpec, described: str) -> None:
    if not column.finite:
        raise GraphError(f"gives values that are not finite for {described}, as {spec.name}")
    length = np.linalg.norm(column.values, axis=1) if spec.unit else np.ones(1)
    if np.abs(length - 1).max(initial=0) > UNIT:
        raise GraphError(
            f"gives a vector of length {length[np.abs(length - 1).argmax()]:.3g}, and its manifest says "
            "that they are normalized"
        )


def _described(payloads: Sequence[Payload], model: Model) -> str:
    return model.input.describe([payload.units for payload in payloads])


def likeness(model: Model, one: Columns, other: Columns, *, turned: bool = False) -> float:
    """The least cosine of an item in one result and in another, which may hold more; `turned`: in reverse
    order. Sparse vectors are compared as the long vectors that they stand for."""
    least, placed = 1.0, {spec.places for spec in model.outputs}
    for spec in model.outputs:
        if spec.name in placed:
            continue
        for place in range(len(one[spec.name])):
            there = len(one[spec.name]) - 1 - place if turned else place
            least = min(least, _alike(*_long(spec, one, place, other, there)))
    return least


def _long(spec: OutputSpec, one: Columns, place: int, other: Columns, there: int) -> tuple[Values, Values]:
    """An item of one result, and one of another, as vectors that can be compared."""
    mine, theirs = one[spec.name].item(place), other[spec.name].item(there)
    if not spec.places:
        return mine, theirs
    at, there_at = one[spec.places].item(place), other[spec.places].item(there)
    every, where = np.unique(np.concatenate([at, there_at]), return_inverse=True)
    long = np.zeros((2, len(every)), mine.dtype)
    long[0, where[: len(at)]], long[1, where[len(at) :]] = mine, theirs
    return long[0], long[1]


def _alike(one: Values, other: Values) -> float:
    """The cosine of two items: 1 if both are zero, 0 if their shapes differ."""
    return _rows_alike(one.reshape(1, -1), other.reshape(1, -1)) if one.shape == other.shape else 0.0


def rehearse_adapter(graph: AdapterGraph, step: Step) -> RehearsalResult:
    """Try an adapter's graph in this process. Raises GraphError."""
    step()
    session = AdapterSession(graph)
    random = np.random.default_rng(0).normal(size=(ROWS, session.width)).astype(np.float32)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    some = np.arange(ROWS, dtype=np.int64) % (len(graph.groups) + 1)

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
            raise GraphError("gives a row a different vector each time")
        turned = run(rows[::-1], some[: len(rows)][::-1])[::-1]
        if _rows_alike(adapted, turned) < SAME_ORDER:
            raise GraphError("gives a row a different vector when the rows are in another order")
    run(np.zeros_like(random), some)
    seconds = []
    for _ in range(TRIALS):
        begun = time.perf_counter()
        run(random, some)
        seconds.append(time.perf_counter() - begun)
    return RehearsalResult(row_seconds=min(seconds) / ROWS)


def _rows_alike(one: Values, other: Values) -> float:
    """The least cosine of two rows: 1 if both are zero.

    A number alone, such as a score, has no direction but its sign: 1 less the difference, relative to numbers
    beyond 1.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)  # of whole numbers, products may not fit
    if one.shape[1] == 1:
        apart = np.abs(one - other) / np.maximum(1, np.maximum(np.abs(one), np.abs(other)))
        return float(1 - apart.max())
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = np.abs(one - other).max(axis=1, initial=0) < 1e-6
    cosines = np.where(same, 1.0, (one * other).sum(axis=1) / np.maximum(lengths, 1e-30))
    least: float = cosines.min()
    return least
