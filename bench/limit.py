"""The limit: one process, one core, no server; every text known beforehand, sorted by length, in batches.

Run as a program, it prints one JSON object: texts per second for each batch size.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import tokenizers

from bench import data
from trimtab import bundle as bundles

BATCH_SIZES = (4, 8, 16, 32)


def main() -> None:
    """Measure one mix."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--mix", required=True)
    parser.add_argument("--texts", type=int, required=True)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.sched_setaffinity(0, {options.core})
    bundle = bundles.read(options.bundle)
    manifest, variant = bundle.manifest, bundle.manifest.variants[0]
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    graph = bundle.file(variant.files[0])
    session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.file(manifest.tokenizer)))
    tokenizer.enable_truncation(manifest.max_tokens)
    texts = data.mix(options.mix, options.texts)

    def run(batch: list[list[int]]) -> None:
        width = max(map(len, batch))
        ids = np.full((len(batch), width), manifest.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, each in enumerate(batch):
            ids[row, : len(each)] = each
            mask[row, : len(each)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        session.run(["embeddings"], {name: feeds[name] for name in variant.inputs})

    for _ in range(5):
        run([[5] * 64] * 8)
    rates = {}
    for size in BATCH_SIZES:
        begun = time.perf_counter()
        ids = sorted((encoding.ids for encoding in tokenizer.encode_batch(texts)), key=len)
        for start in range(0, len(ids), size):
            run(ids[start : start + size])
        rates[size] = len(texts) / (time.perf_counter() - begun)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
