"""Measure a graph: parity with the source, independence of batch neighbours, speed."""

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tokenizers
from numpy.typing import NDArray

from trimtab.artifacts.cards import Cell, Parity, ReportCard, Speed
from trimtab.artifacts.manifest import Prompts
from trimtab.errors import ExportError
from trimtab.inputs import text as inputs
from trimtab_export import runtime, sentences
from trimtab_export.graph.head import OUTPUT
from trimtab_export.runtime import AnyGraph
from trimtab_export.source import Embed, Source, TokenizerFile
from trimtab_export.tokens import Collator

Floats: TypeAlias = NDArray[np.float32]

# The largest difference of a component that reordered float32 arithmetic can explain; for components beyond 1
# it grows with them.
TOLERANCE = 1e-4
BATCH = 8
LONGEST = 1024  # tokens of the longest checked text: its attention over a batch must fit in memory
SHAPES = ((1, 16), (1, 128), (8, 16), (32, 16), (8, 128))
PLAIN = Path()  # any graph for ONNX Runtime
SECONDS_A_SHAPE = 0.5
MOST_RUNS = 30
QUANTISED = "Dynamically quantised weights cause this: give the float32 graph"
OTHER = "The converter does not reproduce this encoder: an ONNX graph made by other means can be the SOURCE"


def check_texts(collator: Collator, max_tokens: int) -> list[str]:
    """The shipped texts, and one that fills `max_tokens`, up to LONGEST."""
    return [*sentences.load(), sentences.of_length(min(max_tokens, LONGEST), collator.count)]


def compare(graph: Path, source: Source, texts: list[str], collator: Collator) -> tuple[Parity, Floats]:
    """Compares the graph's vectors with the source's, in both roles, and single texts with batches.

    Returns the parity and the graph's vectors, float32 (texts, dimensions). Raises ExportError if they differ
    by more than TOLERANCE, or if the tokenizer has tokens that the graph does not know.
    """
    session = runtime.session(graph)

    def vectors(batch: int, prompt: str) -> Floats:
        starts = range(0, len(texts), batch)
        return np.concatenate(
            [runtime.run(session, OUTPUT, collator(texts[start : start + batch], prompt)) for start in starts]
        )

    roles = _roles(source.prompts)
    expected = _in_roles(source.embed, texts, roles)
    batched = np.concatenate([vectors(BATCH, prompt) for prompt in roles])
    alone = np.concatenate([vectors(1, prompt) for prompt in roles])
    scale = max(1.0, float(np.abs(expected).max()))
    diff = np.maximum(np.abs(batched - expected), np.abs(alone - expected)).max(axis=1)
    between = np.abs(batched - alone).max(axis=1)
    limit = TOLERANCE * scale
    _refuse(between, limit, texts, "a text's vector changes with its neighbours in the batch", QUANTISED)
    _refuse(diff, limit, texts, f"{source.architecture}: the graph's vectors differ from the source's", OTHER)
    _check_vocabulary(graph, source.tokenizer)
    parity = Parity(
        texts=len(expected),
        max_abs_diff=float(diff.max()),
        min_cosine=float(_cosines(alone, expected).min()),
        batch_max_abs_diff=float(between.max()),
    )
    return parity, alone


def _check_vocabulary(graph: Path, tokenizer: TokenizerFile) -> None:
    """Refuse a tokenizer with ids beyond the rows of the embedding: a text with such an id would fail."""
    read = tokenizers.Tokenizer.from_str(tokenizer.json)
    tokens = {number: token for token, number in read.get_vocab(with_added_tokens=True).items()}
    highest = max(*tokens, *read.encode("").ids, tokenizer.pad_id)
    batch = inputs.feeds([np.array([highest], np.int32)], tokenizer.pad_id, inputs.TokenTypes())
    try:
        runtime.run(runtime.session(graph, threads=1), OUTPUT, batch)
    except ExportError as error:
        raise ExportError(
            f"the tokenizer has the token {tokens.get(highest, 'of padding')!r} with the id {highest}, and "
            f"the encoder fails on it: {runtime.first_line(error.__cause__ or error)}. Its embedding has too "
            "few rows: resize it (resize_token_embeddings), or take the token out of the tokenizer"
        ) from None


def _roles(prompts: Prompts) -> list[str]:
    """The prompts to check: both roles, or one if they are equal."""
    return list(dict.fromkeys((prompts.query, prompts.passage)))


def _in_roles(embed: Embed, texts: list[str], roles: list[str]) -> Floats:
    return np.concatenate([embed(texts, prompt) for prompt in roles])


def _refuse(differences: Floats, limit: float, texts: list[str], what: str, cure: str) -> None:
    worst = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
    if not differences[worst] <= limit:  # NaN counts as a difference
        text = texts[worst % len(texts)]
        raise ExportError(
            f"{what}: by {differences[worst]:.1e} (at most {limit:.1e}) on {text[:40]!r}. "
            f"Nothing was written. {cure}"
        )


def _cosines(one: Floats, other: Floats) -> NDArray[np.float64]:
    """Row by row; two vectors of length 0 agree."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    cosines: NDArray[np.float64] = np.divide(products, lengths, out=np.ones_like(products), where=lengths > 0)
    return cosines


def measure_speed(graph: AnyGraph, collator: Collator, max_tokens: int) -> tuple[Speed, ...]:
    """The median duration of a run, one thread, at each of SHAPES that the encoder can read."""
    session = runtime.session(graph, threads=1)
    text = sentences.of_length(min(max_tokens, LONGEST), collator.count)
    tokens = collator([text])
    results = []
    for batch, length in SHAPES:
        if length <= tokens["input_ids"].shape[1]:
            inputs = {name: np.repeat(ids[:, :length], batch, axis=0) for name, ids in tokens.items()}
            milliseconds = 1000 * _median_seconds(partial(runtime.run, session, OUTPUT, inputs))
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
