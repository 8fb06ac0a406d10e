"""What a cross-encoder gains, and what serving it costs.

    python -m bench.reranker bench/.data/reranker     # trains it; or any other cross-encoder's folder
    python -m bench.reranking bench/.data/reranker

Quality: all-MiniLM-L6-v2 fetches the first 50 of 10,000 Debian descriptions, which were held out of training,
and the server ranks them again. nDCG@10 before and after, over the same queries, with its interval. Speed:
the same pairs as the SDK sends them, and in a bare loop of ONNX Runtime that knows all pairs beforehand and
sorts them by length; both on one core, in turns.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

import trimtab
from bench import data, encoders, limit, processes
from bench.report import append
from trimtab.artifacts import bundle as bundles
from trimtab_export import runtime
from trimtab_export.adapters import metrics
from trimtab_export.export import export
from trimtab_export.source import Settings

DENSE, RERANKER = "all-minilm-l6-v2", "reranker"
DOCUMENTS, DEPTH, CUT = 10_000, 50, 10
Ranked = NDArray[np.int64]  # the numbers of documents, the best first


class Held(NamedTuple):
    """Queries and all documents; the first documents are the right ones, in the queries' order."""

    queries: list[str]
    documents: list[str]


class Bare:
    """The bundle's tokenizer and graph for pairs, on one thread, and nothing else."""

    def __init__(self, folder: Path) -> None:
        bundle = bundles.read(folder)
        manifest, only = bundle.manifest, bundle.manifest.variants[0]
        assert manifest.input.processor is not None
        self._session = runtime.session(bundle.file(only.files[0]), threads=1)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(bundle.file(manifest.input.processor)))
        self._tokenizer.enable_truncation(manifest.max_tokens)
        self._inputs, self._output = only.inputs, only.tensors[manifest.output.name].name

    def rate(self, pairs: Sequence[tuple[str, str]], most: int) -> float:
        """Pairs per second in batches of at most `most` tokens, padding included; with tokenising."""
        begun = time.perf_counter()
        read = sorted(self._tokenizer.encode_batch_fast(list(pairs)), key=len)
        for batch in limit.cut(read, 1 << 30, most):
            self._session.run([self._output], self._feeds(batch))
        return len(pairs) / (time.perf_counter() - begun)

    def _feeds(self, batch: Sequence[Any]) -> dict[str, NDArray[np.int64]]:
        feeds = {name: np.zeros((len(batch), len(batch[-1])), np.int64) for name in self._inputs}
        for row, each in enumerate(batch):
            given = {
                "input_ids": each.ids,
                "attention_mask": each.attention_mask,
                "token_type_ids": each.type_ids,
            }
            for name, array in feeds.items():
                array[row, : len(each)] = given[name]
        return feeds


def fetched(client: trimtab.Client, held: Held) -> list[Ranked]:
    """For each query, the numbers of the nearest DEPTH documents."""
    documents = client.embed(held.documents, encoder=DENSE, priority="bulk", timeout=3600)
    queries = client.embed(held.queries, encoder=DENSE, timeout=600)
    return [np.argsort(-(documents @ query), kind="stable")[:DEPTH] for query in queries]


def reranked(client: trimtab.Client, held: Held, found: Sequence[Ranked]) -> tuple[list[Ranked], float]:
    """The same documents as the cross-encoder ranks them, and the seconds that it took, one query at a
    time."""
    begun, ranked = time.perf_counter(), []
    for query, numbers in zip(held.queries, found, strict=True):
        texts = [held.documents[number] for number in numbers]
        ranked.append(numbers[client.rerank(query, texts, encoder=RERANKER, timeout=600).indices])
    return ranked, time.perf_counter() - begun


def ndcg(ranked: Sequence[Ranked]) -> NDArray[np.float64]:
    """nDCG@10 of each query, whose right document has its own number."""
    places = [np.flatnonzero(numbers[:CUT] == query) for query, numbers in enumerate(ranked)]
    return np.array([1 / np.log2(each[0] + 2) if len(each) else 0.0 for each in places])


def speed(
    client: trimtab.Client, bare: Bare, query: str, texts: Sequence[str], core: int, rounds: int
) -> dict[str, float]:
    """Pairs per second of one query with many candidates, served and bare, in turns."""
    pairs = [(query, text) for text in texts]
    most = max(limit.TOKENS[1:], key=lambda tokens: bare.rate(pairs[::8], tokens))
    served, alone = [], []
    for number in range(rounds + 1):
        begun = time.perf_counter()
        client.rerank(query, texts, encoder=RERANKER, timeout=3600)
        seconds = time.perf_counter() - begun
        if number:  # the first warms up
            served.append(len(texts) / seconds)
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})  # where the server rests meanwhile
        alone.append(bare.rate(pairs, most))
        os.sched_setaffinity(0, mine)
    return {
        "served": round(statistics.median(served), 1),
        "bare": round(statistics.median(alone[1:]), 1),
        "share": round(statistics.median(s / b for s, b in zip(served, alone[1:], strict=True)), 3),
    }


def main() -> None:
    """Export, serve, measure, append to the history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the cross-encoder")
    parser.add_argument("--repository", type=Path, default=encoders.FOLDER.parent / "reranking")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=1500, help="of one query, for the speed")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name, source in ((DENSE, encoders.source(encoders.L6)), (RERANKER, options.folder)):
        if not encoders.exported(options.repository / name / "1"):
            export(Settings(str(source)), name, options.repository, 1)
    examples = data.examples()[:DOCUMENTS]
    held = Held([each.query for each in examples[: options.queries]], [each.document for each in examples])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cores = processes.cores()
    os.sched_setaffinity(0, {cores.client})
    bare = Bare(options.repository / RERANKER / "1")
    with (
        processes.trimtab(options.repository, cores.server) as server,
        trimtab.Client(server.url, timeout=600) as client,
    ):
        found = fetched(client, held)
        ranked, seconds = reranked(client, held, found)
        before, after = ndcg(found), ndcg(ranked)
        gain = metrics.difference(after, before)
        texts = held.documents[: options.candidates]
        figures = speed(client, bare, held.queries[0], texts, cores.server, options.rounds)
    within = float(np.mean([query in numbers for query, numbers in enumerate(found)]))
    append(
        "reranking",
        queries=options.queries,
        documents=DOCUMENTS,
        depth=DEPTH,
        dense_ndcg=round(float(before.mean()), 4),
        reranked_ndcg=round(float(after.mean()), 4),
        gain=[round(each, 4) for each in (gain.value, gain.low, gain.high)],
        within=round(within, 4),
        seconds_a_query=round(seconds / options.queries, 3),
        candidates=len(texts),
        pairs_a_second=figures,
    )


if __name__ == "__main__":
    main()
