"""Query drift, live: false alarms on similar queries, and how soon different queries are noticed.

    python -m bench.drift models/all-minilm-l6-v2/1

The queries are Debian's short descriptions in English, and a random part of them is the calibration set. Live
queries are the rest, the German translations of Debian's descriptions, and long descriptions. Their vectors
go through the server's own detector (spaces/drift.py). Kept in bench/history/drift.jsonl.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import data, report
from bench.limit import Bare
from trimtab_server.spaces.drift import LEVEL, WINDOW, Baseline, Drift

BATCH = 32
LONG_CHARACTERS = 600
Vectors = NDArray[np.float32]


def embed(bare: Bare, texts: list[str]) -> Vectors:
    """The encoder's vectors, float32 (n, d)."""
    ids = bare.tokenize(texts)
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    vectors = np.empty((len(ids), bare.width), np.float32)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        vectors[rows] = bare.run([ids[row] for row in rows])
    return vectors


def alarms(baseline: Baseline, live: Vectors) -> tuple[int, int, int]:
    """How many windows raise the alarm, out of how many; and after how many queries the first alarm comes."""
    found = [finding.alarm for finding in Drift(baseline).add(live)]
    first = found.index(True) + 1 if any(found) else 0
    return sum(found), len(found), first * WINDOW


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--english", type=int, default=12_000, help="queries to take calibration sets from")
    parser.add_argument("--others", type=int, default=1000, help="German, and long, queries")
    parser.add_argument("--draws", type=int, default=20, help="calibration sets of each size")
    options = parser.parse_args()
    bare, pairs = Bare(options.bundle), data.pairs()
    english = embed(bare, [short for short, _ in pairs[: options.english]])
    german = embed(bare, [short for short, _ in data.pairs("de")[: options.others]])
    long = embed(bare, [text[:LONG_CHARACTERS] for _, text in pairs[-options.others :]])
    rng = np.random.default_rng(0)
    rows = []
    for size in (100, 500, 2000):
        counted = np.zeros(2, int)
        german_after = []
        seen: dict[str, list[float]] = {"long": [], "a fifth German": []}
        for _ in range(options.draws):
            order = rng.permutation(len(english))
            baseline = Baseline(english[order[:size]].astype(np.float16))
            live = english[order[size:]]
            alarmed, windows, _ = alarms(baseline, live)
            counted += (alarmed, windows)
            german_after.append(alarms(baseline, rng.permutation(german))[2])
            mixed = live[: len(german)].copy()
            fifth = rng.random(len(mixed)) < 0.2
            mixed[fifth] = german[: len(mixed)][fifth]
            for name, other in (("long", long), ("a fifth German", mixed)):
                alarmed, windows, _ = alarms(baseline, other)
                seen[name].append(alarmed / windows)
        row = {
            "calibration": size,
            "like_windows": int(counted[1]),
            "false_alarms": counted[0] / counted[1],
            "german_noticed": float(np.mean(np.array(german_after) > 0)),
            "german_after_at_most": max(german_after),
            **{name: float(np.mean(shares)) for name, shares in seen.items()},
        }
        rows.append(row)
        print(json.dumps(row))
    report.append("drift", window=WINDOW, level=LEVEL, rows=rows)


if __name__ == "__main__":
    main()
