"""Measure a graph: parity with the source, independence of batch neighbours, speed."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tokenizers
from numpy.typing import NDArray

from trimtab.artifacts.cards import Cell, Parity, ReportCard, Speed
from trimtab.artifacts.manifest import Tensor
from trimtab.errors import ExportError
from trimtab.inputs import text as inputs
from trimtab.kinds import Role
from trimtab.outputs.form import ColumnForm
from trimtab.values.column import Column, Columns, gathered
from trimtab_export import runtime, sentences
from trimtab_export.graph.head import OUTPUT
from trimtab_export.runtime import AnyGraph
from trimtab_export.source import Reference, Source, TokenizerFile
from trimtab_export.tokens import Collates, Collator

Floats: TypeAlias = NDArray[np.float32]

# The largest difference that reordered float32 arithmetic can explain, relative to the largest number of an
# output, or to 1 for vectors of length 1.
TOLERANCE = 1e-4
# Numbers of an output that are all smaller than this are compared as if one of them were as large.
SMALL = 1e-3
# The same for entries of sparse vectors: rounding decides whether so small an entry is there.
TIE = 1e-5
BATCH = 8
LONGEST = 1024  # tokens of the longest checked text: its attention over a batch must fit in memory
SHAPES = ((1, 16), (1, 128), (8, 16), (32, 16), (8, 128))
PLAIN = Path()  # any graph for ONNX Runtime
SECONDS_A_SHAPE = 0.5
MOST_RUNS = 30
QUANTISED = "Dynamically quantised weights cause this: give the float32 graph"
OTHER = "The converter does not reproduce this encoder: an ONNX graph made by other means can be the SOURCE"


@dataclass(frozen=True, slots=True)
class Compared:
    """An output to compare: its columns, where a graph gives them, and the source's own result, if any."""

    name: str
    forms: tuple[ColumnForm, ...]
    tensors: Mapping[str, Tensor]
    reference: Reference | None

    def read(self, session: Any, batch: Mapping[str, NDArray[Any]]) -> Columns:
        """What a graph gives for a batch."""
        found = [self.tensors[form.name] for form in self.forms]
        names = list(dict.fromkeys(name for each in found for name in (each.name, each.offsets) if name))
        given = dict(zip(names, runtime.run_all(session, names, batch), strict=True))
        return {
            form.name: Column(given[tensor.name], given[tensor.offsets] if tensor.offsets else None)
            for form, tensor in zip(self.forms, found, strict=True)
        }


def compare(
    graph: Path, source: Source, outputs: Sequence[Compared], items: Sequence[Any], collator: Collates
) -> tuple[Parity, dict[str, float]]:
    """Compares the graph's results with the source's, in all roles, and single items with batches.

    Returns the parity of all outputs together, and the largest absolute number of each. Raises ExportError
    if an output differs by more than TOLERANCE, or if the tokenizer has tokens that the graph does not know.
    """
    session = runtime.session(graph)
    parities, largest = [], {}
    for output in outputs:
        batched, alone = (_results(session, output, source.roles, items, collator, n) for n in (BATCH, 1))
        largest[output.name] = _largest(output, alone)
        own = None
        if output.reference is not None:
            own = _joined(output, [output.reference(list(items), role) for role in source.roles])
        if not largest[output.name]:
            raise ExportError(
                f"{source.architecture}: the {output.name} output is 0 for every text of the comparison, so "
                "that nothing could be found by it: is its layer trained?"
            )
        limit = TOLERANCE * _scale(output, alone if own is None else own)
        between, cosines = _differences(output, batched, alone)
        _refuse(between, limit, items, "an item's result changes with its neighbours in the batch", QUANTISED)
        diff = between
        if own is not None:
            (one, cosines), (other, _) = (_differences(output, each, own) for each in (alone, batched))
            diff = np.maximum(one, other)
            what = f"{source.architecture}: the graph's {output.name} output differs from the source's"
            _refuse(diff, limit, items, what, OTHER)
        parities.append(
            Parity(
                texts=len(diff),
                max_abs_diff=float(diff.max()),
                min_cosine=float(cosines.min()),
                batch_max_abs_diff=float(between.max()),
            )
        )
    _check_vocabulary(graph, source.tokenizer)
    worst = Parity(
        texts=parities[0].texts,
        max_abs_diff=max(each.max_abs_diff for each in parities),
        min_cosine=min(each.min_cosine for each in parities),
        batch_max_abs_diff=max(each.batch_max_abs_diff for each in parities),
    )
    return worst, largest


def agree(
    outputs: Sequence[Compared], batch: Mapping[str, NDArray[Any]], one: Any, other: Any, tolerance: float
) -> bool:
    """Whether two sessions give the same for a batch, up to this difference, relative to the largest number.

    Of sparse outputs, an entry that rounding decides on may be in one and not in the other.
    """
    for output in outputs:
        before, after = (output.read(session, batch) for session in (one, other))
        diff, _ = _differences(output, after, before)
        if not (diff <= tolerance * _scale(output, before)).all():
            return False
    return True


def _results(
    session: Any, output: Compared, roles: Sequence[Role], items: Sequence[Any], collator: Collates, size: int
) -> Columns:
    """Of all items in each role, in batches of this size."""
    starts = range(0, len(items), size)
    return _joined(
        output,
        [
            output.read(session, collator.in_role(items[start : start + size], role))
            for role in roles
            for start in starts
        ],
    )


def _joined(output: Compared, results: Sequence[Columns]) -> Columns:
    names = [form.name for form in output.forms]
    return gathered([(each, row) for each in results for row in range(len(each[names[0]]))], names)


def _scale(output: Compared, columns: Columns) -> float:
    """What a difference of numbers is relative to: the largest of them, but 1 for vectors of length 1."""
    return max(1.0 if any(form.unit for form in output.forms) else SMALL, _largest(output, columns))


def _largest(output: Compared, columns: Columns) -> float:
    floats = [columns[form.name].values for form in output.forms if _is_float(columns, form)]
    return max(float(np.abs(each).max(initial=0)) for each in floats)


def _is_float(columns: Columns, form: ColumnForm) -> bool:
    return columns[form.name].values.dtype.kind == "f"


def _differences(output: Compared, one: Columns, other: Columns) -> tuple[Floats, NDArray[np.float64]]:
    """For each item the largest difference of a number, and the cosine of all its numbers.

    Items with another number of rows differ by infinity, and so do those of which only one has an entry that
    is more than a tie. An item of numbers with places is compared as the long vector that it stands for.
    """
    diff, cosines = [], []
    placed = any(form.places for form in output.forms)
    tie = TIE * _scale(output, other)
    for item in range(len(one[output.forms[0].name])):
        pairs = [_numbers(form, one, other, item) for form in output.forms if _is_float(one, form)]
        if any(a.shape != b.shape for a, b in pairs):
            diff.append(np.inf)
            cosines.append(0.0)
            continue
        a, b = (np.concatenate(each).astype(np.float64) for each in zip(*pairs, strict=True))
        lost = placed and bool(np.abs(a - b)[(a == 0) != (b == 0)].max(initial=0) > tie)
        diff.append(np.inf if lost else float(np.abs(a - b).max(initial=0)))
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        cosines.append(float(a @ b / lengths) if lengths > 0 else 1.0)  # two vectors of length 0 agree
    return np.array(diff, np.float32), np.array(cosines)


def _numbers(form: ColumnForm, one: Columns, other: Columns, item: int) -> tuple[Floats, Floats]:
    """An item's numbers in both, those of the same place at the same position."""
    numbers = [columns[form.name].item(item).ravel() for columns in (one, other)]
    if not form.places:
        return numbers[0], numbers[1]
    places = [columns[form.places].item(item) for columns in (one, other)]
    either = np.union1d(*places)
    long = [np.zeros(len(either), np.float32) for _ in numbers]
    for into, at, found in zip(long, places, numbers, strict=True):
        np.add.at(into, np.searchsorted(either, at), found)
    return long[0], long[1]


def _check_vocabulary(graph: Path, tokenizer: TokenizerFile) -> None:
    """Refuse a tokenizer with ids beyond the rows of the embedding: a text with such an id would fail."""
    read = tokenizers.Tokenizer.from_str(tokenizer.json)
    tokens = {number: token for token, number in read.get_vocab(with_added_tokens=True).items()}
    highest = max(*tokens, *read.encode("").ids, tokenizer.pad_id)
    ids, marks = np.array([highest], np.int32), np.array([inputs.ATTENDED | inputs.GIVES], np.uint8)
    batch = inputs.feeds([ids], tokenizer.pad_id, inputs.TokenTypes(), marks=[marks])
    session = runtime.session(graph, threads=1)
    try:
        runtime.run_all(session, [value.name for value in session.get_outputs()], batch)
    except ExportError as error:
        raise ExportError(
            f"the tokenizer has the token {tokens.get(highest, 'of padding')!r} with the id {highest}, and "
            f"the encoder fails on it: {runtime.first_line(error.__cause__ or error)}. Its embedding has too "
            "few rows: resize it (resize_token_embeddings), or take the token out of the tokenizer"
        ) from None


def _refuse(differences: Floats, limit: float, items: Sequence[Any], what: str, cure: str) -> None:
    worst = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
    if not differences[worst] <= limit:  # NaN counts as a difference
        item = items[worst % len(items)]
        shown = tuple(text[:40] for text in item) if isinstance(item, tuple) else item
        shown = item[:40] if isinstance(item, str) else shown
        raise ExportError(
            f"{what}: by {differences[worst]:.1e} (at most {limit:.1e}) on {shown!r}. "
            f"Nothing was written. {cure}"
        )


def longest(collator: Collator, max_tokens: int) -> dict[str, NDArray[Any]]:
    """A text as long as the encoder reads, up to LONGEST, as a graph is fed it."""
    return collator([sentences.of_length(min(max_tokens, LONGEST), collator.count)])


def measure_speed(
    graph: AnyGraph, item: Mapping[str, NDArray[Any]], outputs: Sequence[str] = (OUTPUT,)
) -> tuple[Speed, ...]:
    """The median duration of a run, one thread, at each of SHAPES that is no longer than the item."""
    session = runtime.session(graph, threads=1)
    results = []
    for batch, length in SHAPES:
        if length <= item["input_ids"].shape[1]:
            inputs = {name: np.repeat(ids[:, :length], batch, axis=0) for name, ids in item.items()}
            milliseconds = 1000 * _median_seconds(partial(runtime.run_all, session, outputs, inputs))
            results.append(Speed(batch=batch, length=length, milliseconds=round(milliseconds, 3)))
    return tuple(results)


def _median_seconds(act: Callable[[], object]) -> float:
    act()  # the first run allocates
    seconds: list[float] = []
    while not seconds or (sum(seconds) < SECONDS_A_SHAPE and len(seconds) < MOST_RUNS):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def machine(graph: AnyGraph = PLAIN) -> str:
    """The machine that the speed was measured on, by type, not by name, and the graph's runtime."""
    model = ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text("utf-8", "replace").splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), "")
    processor = model or platform.processor() or platform.machine()
    return f"{processor}, 1 thread, {runtime.version(graph)} on the CPU"


def report_card(parity: Parity, speed: tuple[Speed, ...], cells: tuple[Cell, ...] = ()) -> ReportCard:
    """All measurements, with the machine."""
    return ReportCard(parity=parity, speed=speed, machine=machine(), cells=cells)
