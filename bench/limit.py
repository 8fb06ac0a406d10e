"""The limit: one process, one core, no server. All texts are known beforehand, sorted by length, and batched.

Run as a program, it prints one JSON object: the texts per second for each way to split the sorted texts into
batches, by a number of texts or by a number of tokens including padding, in each runtime that gives a
variant's vectors: a float32 graph is run in ONNX Runtime and in OpenVINO, any other in its own. All ways are
tried on a part of the texts, and the best ones on all of them. The greatest figure is the limit.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import tokenizers
from numpy.typing import NDArray

from bench import data
from trimtab.artifacts import variants
from trimtab.kinds import RUNTIMES, Runtime
from trimtab_export import runtime

Ids = TypeVar("Ids", bound=Sized)  # of one text
TEXTS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (128, 256, 512, 1024, 2048, 4096)
FINALISTS = 3


class Bare:
    """The bundle's tokenizer and a variant's graph on one thread, and nothing else.

    `variant`: its name; "": the first. `runner`: another runtime than its own.
    """

    def __init__(self, folder: Path, variant: str = "", runner: Runtime | None = None) -> None:
        bundle = variants.read(f"{folder}:{variant}" if variant else str(folder))
        manifest, only = bundle.manifest, bundle.manifest.variants[0]
        graph = runtime.graph(bundle.file(only.files[0]), runner or only.runner, only.precision)
        self._session = runtime.session(graph, threads=1)
        self.runners: tuple[Runtime, ...] = get_args(Runtime) if only.precision == "fp32" else (only.runner,)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(bundle.file(manifest.tokenizer)))
        self._tokenizer.enable_truncation(manifest.max_tokens)
        self._inputs, self._pad = only.inputs, manifest.pad_id
        self.width = manifest.dimensions

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def run(self, batch: Sequence[list[int]]) -> NDArray[np.float32]:
        """One run of the graph: a vector for each text, shape (n, width)."""
        longest = max(map(len, batch))
        ids = np.full((len(batch), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, each in enumerate(batch):
            ids[row, : len(each)] = each
            mask[row, : len(each)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        vectors: NDArray[np.float32] = self._session.run(
            ["embeddings"], {name: feeds[name] for name in self._inputs}
        )[0]
        return vectors


def cut(ids: Sequence[Ids], texts: int, tokens: int) -> Iterator[Sequence[Ids]]:
    """Texts, sorted by length, in batches of at most `texts` texts and, beyond one text, `tokens` tokens."""
    start = 0
    for end in range(1, len(ids) + 1):
        after = end + 1 - start
        if end == len(ids) or after > texts or after * len(ids[end]) > tokens:
            yield ids[start:end]
            start = end


def measure(bare: Bare, texts: Sequence[str], most_texts: int, most_tokens: int) -> float:
    """Texts per second, including tokenising."""
    begun = time.perf_counter()
    for batch in cut(sorted(bare.tokenize(texts), key=len), most_texts, most_tokens):
        bare.run(batch)
    return len(texts) / (time.perf_counter() - begun)


def main() -> None:
    """Measure one mix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--core", type=int, required=True, help="the core to run on")
    parser.add_argument("--variant", default="", help="a variant's name (default: the first)")
    parser.add_argument("--mix", required=True, choices=data.MIXES)
    parser.add_argument("--texts", type=int, required=True, help="how many texts")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.sched_setaffinity(0, {options.core})
    runners = Bare(options.bundle, options.variant).runners
    bares = {RUNTIMES[each]: Bare(options.bundle, options.variant, each) for each in runners}
    texts = data.mix(options.mix, options.texts)
    for bare in bares.values():
        for _ in range(5):
            bare.run([[5] * 64] * 8)
    sizes = {f"{size} texts": (size, 1 << 30) for size in TEXTS}
    sizes |= {f"{size} tokens": (1 << 30, size) for size in TOKENS}
    ways = {f"{size} in {each}": (bare, *sizes[size]) for size in sizes for each, bare in bares.items()}
    part = random.Random(1).sample(texts, len(texts) // 4)
    trials = {name: measure(bare, part, *size) for name, (bare, *size) in ways.items()}
    best = sorted(trials, key=trials.__getitem__, reverse=True)[:FINALISTS]
    finals = {name: ways[name] for name in best}
    print(json.dumps({name: measure(bare, texts, *size) for name, (bare, *size) in finals.items()}))


if __name__ == "__main__":
    main()
