"""Trains a cross-encoder on Debian's package descriptions, in minutes on two cores.

    python -m bench.reranker bench/.data/reranker

It begins with all-MiniLM-L6-v2, and learns to tell the long description that belongs to a short one from
those that the same encoder finds nearest to it: listwise, by the softmax over one right document and some
wrong ones. The folder is sentence-transformers' own, so `trimtab export` reads it like any other
cross-encoder. The first HELD_OUT examples are left out: `bench.reranking` judges by them.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from bench import data, encoders

HELD_OUT = 12_000
WRONG = 4  # documents beside the right one
NEAREST = 30  # among so many they are drawn
QUERIES = 8  # in a step
MOST_TOKENS = 96  # while it trains
READS = 256  # afterwards
RATE, WARM_UP = 6e-5, 0.1


def hard_negatives(examples: Sequence[data.Example], folder: Path) -> list[list[int]]:
    """For each query, the numbers of the documents that the encoder finds nearest, without its own."""
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 128
    queries, documents = (
        model.encode(texts, batch_size=64, normalize_embeddings=True)
        for texts in ([each.query for each in examples], [each.document for each in examples])
    )
    found = []
    for number, query in enumerate(queries):
        near = np.argpartition(-(documents @ query), NEAREST)[: NEAREST + 1]
        found.append([int(each) for each in near if each != number])
    return found


def batches(examples: Sequence[data.Example], steps: int) -> Iterator[list[tuple[str, str]]]:
    """Pairs for each step: for each query, its own document first, then wrong ones."""
    rng = random.Random(0)
    wrong = hard_negatives(examples, encoders.source(encoders.L6))
    order: list[int] = []
    for _ in range(steps):
        pairs = []
        for _ in range(QUERIES):
            if not order:
                order = rng.sample(range(len(examples)), len(examples))
            number = order.pop()
            chosen = [number, *rng.sample(wrong[number], WRONG)]
            pairs += [(examples[number].query, examples[each].document) for each in chosen]
        yield pairs


def train(examples: Sequence[data.Example], steps: int) -> CrossEncoder:
    """A cross-encoder that has seen so many batches."""
    torch.manual_seed(0)
    model = CrossEncoder(str(encoders.source(encoders.L6)), num_labels=1, max_length=READS, device="cpu")
    classifier, tokenizer = model.model, model.tokenizer
    classifier.train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE, weight_decay=0.01)
    warm = max(1, int(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    begun, losses = time.monotonic(), []
    for step, pairs in enumerate(batches(examples, steps), 1):
        tokens = tokenizer(
            [first for first, _ in pairs], [second for _, second in pairs],
            padding=True, truncation="longest_first", max_length=MOST_TOKENS, return_tensors="pt",
        )  # fmt: skip
        logits = classifier(**tokens).logits.view(QUERIES, 1 + WRONG)
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(QUERIES, dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0:
            spent = time.monotonic() - begun
            print(f"step {step} of {steps}: loss {np.mean(losses[-50:]):.3f}, {spent:.0f} s", file=sys.stderr)
    return model.eval()


def main() -> None:
    """Train, and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where it is saved")
    parser.add_argument("--examples", type=int, default=6000, help="how many to train on (default: 6000)")
    parser.add_argument("--steps", type=int, default=500, help="of 8 queries each (default: 500)")
    options = parser.parse_args()
    examples = data.examples()[HELD_OUT : HELD_OUT + options.examples]
    train(examples, options.steps).save_pretrained(str(options.folder), create_model_card=False)


if __name__ == "__main__":
    main()
