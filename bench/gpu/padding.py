"""The graph without padding against the graph with it, at batches of several shapes."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

from bench import data
from bench.gpu.devices import Row, proved
from bench.gpu.run import Run
from bench.gpu.sessions import ENOUGH, Feeds, Opened, reason, tried

PRECISIONS = ("fp32", "fp16")
# Texts in a batch, by lengths. "sorted" are mixed texts sorted by length, as a server's batches nearly are.
BATCHES = {"short": (1, 8, 32, 128), "mixed": (8, 32, 128), "sorted": (32, 128), "long": (8, 32)}
TINY = {"short": (1, 8), "mixed": (8,), "sorted": (8,)}
DIFFERENT = 8  # batches of each shape


def padding(run: Run) -> Iterator[Row]:
    """A row for each precision, kind of text and size of batch: texts a second with either graph."""
    sizes = TINY if run.tiny else BATCHES
    seconds = min(ENOUGH, 0.8 * run.seconds / (len(PRECISIONS) * sum(map(len, sizes.values()))))
    for precision in PRECISIONS:
        try:
            graphs = [
                Opened(run.graphs.path(name), run.device) for name in (precision, f"{precision} padded")
            ]
        except Exception as error:
            yield {"row": precision, "reason": reason(error)}
            continue
        for mix, batches in sizes.items():
            for size in batches:
                row = {"row": f"{precision} {mix}", "batch": size}
                yield tried(row, partial(compare, run, graphs, mix, size, seconds))


def compare(run: Run, graphs: Sequence[Opened], mix: str, size: int, seconds: float) -> Row:
    """Both graphs in turns, on the same batches. Each shape has run before it is timed."""
    batches = _batches(run, mix, size)
    cells = sum(each["attention_mask"].size for each in batches)
    real = sum(int(each["attention_mask"].sum()) for each in batches)
    for graph in graphs:
        for feeds in batches:
            graph.run(feeds)
    spent, rounds = [0.0, 0.0], 0
    while not rounds or sum(spent) < seconds:
        for feeds in batches:
            for place, graph in enumerate(graphs):
                begun = time.perf_counter()
                graph.run(feeds)
                spent[place] += time.perf_counter() - begun
        rounds += 1
    without, padded = (rounds * size * len(batches) / each for each in spent)
    return {
        "tokens": round(real / (size * len(batches)), 1),
        "padding": round(1 - real / cells, 3),
        "unpadded_rate": round(without, 1),
        "padded_rate": round(padded, 1),
        "ratio": round(without / padded, 3),
        "faster": "without padding" if without > padded else "padded",
        "on": proved(graphs[0].session, run.device),
    }


def _batches(run: Run, mix: str, size: int) -> list[Feeds]:
    ids = run.encoder.ids(data.mix("mixed" if mix == "sorted" else mix, size * DIFFERENT))
    if mix == "sorted":
        ids.sort(key=len)
    return [run.encoder.feeds(ids[start : start + size]) for start in range(0, len(ids), size)]
