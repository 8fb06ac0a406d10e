"""Runs over vector stores that end badly, and what is lost.

    python -m bench.chaos.stores --runs 1000 --seed 1       resumes where it stopped

Each run is a re-index with half-migrated searches, a search, writes that rebuild a FAISS index, or a vector
file, in its own process. It is killed, its disk is full or fails, its source is edited, or a second run does
the same at the same time. Then the run is repeated without faults, and everything is compared with what is
known: documents, vectors, texts, counts, and files that are not Trimtab's.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss

from bench import processes
from bench.chaos import application_stores, store_moves, store_writes
from bench.chaos.endings import REFUSED
from bench.chaos.store_run import CallCounts, StoreRun
from bench.chaos.table import Bar, PartResult, table
from bench.report import append
from tests.client.stores.postgres_process import PostgresProcess, postgres
from trimtab.commands import vector_files
from trimtab.stores import faiss_contents

OPERATIONS = {"reindex": 6, "compaction": 4, "search": 1, "file": 1}
ENDINGS = {
    "faiss": ("kill", "kill", "full", "full", "failing", "edited", "second"),
    "taken": ("kill", "kill", "full", "full", "failing", "edited", "second"),
    "qdrant": ("kill", "kill", "full", "edited", "second"),
    "postgresql": ("kill", "kill", "failing", "edited", "second"),
}
DO = {
    "reindex": store_moves.run_reindex,
    "compaction": store_writes.run_compaction,
    "search": store_moves.run_search,
    "file": store_writes.run_file,
}


def draw(run: StoreRun) -> None:
    """What the run does, over which stores, and how it ends."""
    run.operation = run.random.choices(list(OPERATIONS), list(OPERATIONS.values()))[0]
    target = run.random.choice(application_stores.TARGETS)
    if run.operation == "file":
        run.kinds = (run.random.choice((".npy", ".jsonl")),)
        run.ending = run.random.choice(("kill", "full", "failing", "second"))
        return
    run.kinds = (
        (run.random.choice(application_stores.SOURCES), target)
        if run.operation != "compaction"
        else (target,)
    )
    possible = [each for each in ENDINGS[target] if run.operation == "reindex" or each != "edited"]
    run.ending = "kill" if run.operation == "search" else run.random.choice(possible)


@contextmanager
def small_generations() -> Iterator[None]:
    """New indexes and checkpoints after a few rows, so that they happen often."""
    before = faiss_contents.LEAST_COMPACTED, vector_files.CHECKPOINT_ROWS
    faiss_contents.LEAST_COMPACTED, vector_files.CHECKPOINT_ROWS = 8, 20
    try:
        yield
    finally:
        faiss_contents.LEAST_COMPACTED, vector_files.CHECKPOINT_ROWS = before


def runs(
    folder: Path, count: int, seed: int, database: PostgresProcess, first: int = 0
) -> Iterator[dict[str, Any]]:
    """The outcomes of the runs from number `first` on."""
    counts = CallCounts()
    with small_generations():
        for number in range(first, count):
            run = StoreRun(number, folder / f"run-{number}", random.Random(f"{seed}:{number}"), database)
            shutil.rmtree(run.folder, ignore_errors=True)
            run.folder.mkdir(parents=True)
            draw(run)
            DO[run.operation](run, counts)
            if not run.wrong and not run.worse:
                shutil.rmtree(run.folder)
            yield run.kept()


def part(found: list[dict[str, Any]], seconds: float) -> PartResult:
    """The figures of all runs, by kind, and their bars."""
    lines: dict[str, Counter[str]] = defaultdict(Counter)
    for run in found:
        line = lines[f"{run['operation']} {'->'.join(run['kinds'])} {run['ending']}"]
        line["runs"] += 1
        line["killed"] += -signal.SIGKILL in run["exits"]
        line["refused"] += REFUSED in run["exits"]
        line["wrong"] += bool(run["wrong"])
        line["searches"] += run["searches"]
        line["worse"] += run["worse"]
    totals: Counter[str] = sum(lines.values(), Counter())
    figures = {
        "seconds": round(seconds),
        **totals,
        "kinds": {name: dict(lines[name]) for name in sorted(lines)},
    }
    bars = [
        Bar("runs with something lost or changed", totals["wrong"], 0),
        Bar("searches worse than the old half", totals["worse"], 0),
    ]
    return PartResult(figures, bars)


def run(folder: Path, count: int, seed: int = 1, *, quiet: bool = False) -> PartResult:
    """All runs; a second call with the same folder resumes."""
    faiss.omp_set_num_threads(1)  # threads do not survive a fork
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / f"seed-{seed}.jsonl"
    found = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    begun = time.monotonic() - sum(each.get("seconds", 0.0) for each in found)
    with postgres() as database, journal.open("a") as kept:
        for each in runs(folder, count, seed, database, first=len(found)):
            each["seconds"] = round(time.monotonic() - begun - sum(one["seconds"] for one in found), 3)
            found.append(each)
            kept.write(json.dumps(each) + "\n")
            kept.flush()
            if each["wrong"] or each["worse"]:
                print(f"  {json.dumps(each)}", flush=True)
            elif not quiet and len(found) % 50 == 0:
                print(f"  {len(found)} of {count} runs, {time.monotonic() - begun:.0f} s", flush=True)
    return part(found[:count], time.monotonic() - begun)


def main() -> None:
    """Run, print a line for each kind of run, append to the history."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos.stores", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--restart", action="store_true", help="discard earlier runs and start over")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the database stops, too
    folder = processes.LOGS / "stores"
    if options.restart:
        shutil.rmtree(folder, ignore_errors=True)
    done = run(folder, options.runs, options.seed)
    for name, line in done.figures["kinds"].items():
        print(f"{name:<44}" + "".join(f"{what} {count:<5}" for what, count in line.items()))
    print(table({"stores": done}))
    append("chaos", parts={"stores": done.kept()})
    if not all(bar.passed for bar in done.bars):
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
