"""The export benchmark: how much faster an encoder's variants are, and how much of its quality they keep.

    make bench-export                         two encoders; up to half an hour each on two idle cores
    make bench-export QUICK=1                 a short run of a few minutes; nothing is recorded
    python -m bench.export --help             everything that can be chosen

One export makes everything: a search at each floor, with the texts on the machine. The report card says what
is kept over whole kinds of text that were left out, and over the worst of them. *outside* is what is kept
over a set that no export uses: short descriptions of Debian's packages as queries, thousands of long ones as
documents (bench/data.py). The nearer the card comes to that, the better it is. Speeds are ratios of runs in
turns, on one thread. Progress is kept in bench/.data/export, so an interrupted run resumes. The results go to
bench/history/export.jsonl, and into the pictures in docs/.
"""

import argparse
import json
import math
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
from trimtab.artifacts import manifest as manifests
from trimtab.artifacts import variants
from trimtab.artifacts.manifest import Passes
from trimtab_export import runtime
from trimtab_export.export import export
from trimtab_export.load import load
from trimtab_export.source import Settings
from trimtab_export.tokens import Collator
from trimtab_export.variants import fidelity, material, recipe, retrieval
from trimtab_export.variants.fidelity import typical
from trimtab_export.variants.selection import VariantRequest

HISTORY = ROOT / "bench" / "history" / "export.jsonl"
PICTURES = {encoders.L6: ROOT / "docs" / "variants.png", encoders.E5: ROOT / "docs" / "variants-e5.png"}
WORK = ROOT / "bench" / ".data" / "export"
FLOORS = (0.99, 0.97, 0.90)
SPEEDS = {encoders.L6: (2.4, 3.0, 4.5), encoders.E5: (2.2, 3.0, 4.5)}  # wanted at each floor
SMALLEST = {encoders.L6: 30, encoders.E5: 50}  # MB wanted at the first floor
LEAST_BATCH_COSINE = 0.99999
NEAR = 0.02  # how far a card's worst set may be above what is kept outside
EXITS = {encoders.L6: 4, encoders.E5: 8}  # layers
WIDTH = 128
EXIT_HEAL = 0.3  # million tokens
MINUTES = 30
PACKAGES = ("onnxruntime", "openvino", "torch", "transformers", "onnx")
OUTSIDE_QUERIES, OUTSIDE_DOCUMENTS, CHARACTERS = 500, 4000, 400


def main() -> int:
    """Search at each floor, print the tables, append to the history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--encoders", nargs="+", default=list(PICTURES), choices=list(PICTURES), help="which (default: both)"
    )
    parser.add_argument(
        "--floors", type=float, nargs="+", default=list(FLOORS), help="shares of the nDCG@10 to search at"
    )
    parser.add_argument(
        "--heal-minutes", type=float, default=16.0, help="how long all cuts train, together (default: 16)"
    )
    parser.add_argument(
        "--recipe", type=Path, help="make the variants of this file instead of searching; nothing is recorded"
    )
    parser.add_argument(
        "--exits", action="store_true",
        help="also make exits after two thirds of the layers, and a third of the width",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few texts, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        material.QUERIES, material.DOCUMENTS, fidelity.ROUNDS = 50, 100, 2
    for name in options.encoders:
        record = measure(name, options)
        report(name, record)
        if not (options.quick or options.recipe):
            with HISTORY.open("a") as history:
                history.write(json.dumps(record) + "\n")
            draw_export.draw(name, record["variants"], PICTURES[name])
            shutil.rmtree(WORK / name)
    return 0


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The results of one encoder's export, as kept in the history."""
    work = WORK / (f"{name}-quick" if options.quick else name)
    work.mkdir(parents=True, exist_ok=True)
    settings = Settings(str(encoders.source(name)))
    if options.recipe:
        wanted = VariantRequest(recipe.load(options.recipe))
    else:
        depth = EXITS[name]
        exits = (
            Passes(name=f"exit{depth}", exit=depth),
            Passes(name=f"exit{depth}-healed", exit=depth, heal=EXIT_HEAL),
            Passes(name=f"width{WIDTH}", width=WIDTH),
        )
        beside = exits if options.exits else ()
        wanted = VariantRequest(beside, min_quality=tuple(options.floors), heal_minutes=options.heal_minutes)
    done = work / "repository" / name.lower() / "1"
    with _minutes(work / "seconds") as minutes:
        if not encoders.exported(done):
            export(settings, name.lower(), work / "repository", 1, wanted)
    bundle = bundles.read(done)
    found = outside(settings, bundle, 20 if options.quick else OUTSIDE_QUERIES, OUTSIDE_DOCUMENTS)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", "bench.export", *sys.argv[1:]]),
        "machine": bundle.manifest.variants[0].report.machine,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "encoder": name,
        "minutes": minutes[0],
        "variants": [_figures(bundle, variant, found) for variant in bundle.manifest.variants[1:]],
        "cells": msgspec.to_builtins(bundle.manifest.variants[0].report.cells),
    }


@contextmanager
def _minutes(file: Path) -> Iterator[list[float]]:
    """The time that the block took, including earlier, interrupted runs."""
    before = float(file.read_text()) if file.exists() else 0.0
    started, minutes = time.monotonic(), [0.0]
    try:
        yield minutes
    finally:
        seconds = before + time.monotonic() - started
        file.write_text(str(seconds))
        minutes[0] = round(seconds / 60, 1)


def outside(
    settings: Settings, bundle: bundles.Bundle, queries: int, documents: int
) -> dict[str, tuple[float, float]]:
    """The share of the nDCG@10 that each variant keeps over Debian's descriptions, and by queries alone."""
    encoder = load(settings)
    collator = Collator(encoder.tokenizer, encoder.max_tokens)
    rows = [(each.query, each.document[:CHARACTERS]) for each in data.examples()]
    pairs = retrieval.held_out("Debian's packages", rows, queries, documents)
    first, *rest = bundle.manifest.variants
    whole = fidelity.embed_pairs(bundle.file(first.files[0]), encoder, collator, pairs)
    kept: dict[str, tuple[float, float]] = {}

    def ndcg(one: Any, other: Any) -> float:
        return float(retrieval.gains(one, other, encoder.similarity)[0].mean())

    best = ndcg(whole.queries, whole.documents)
    for variant in rest:
        graph = runtime.graph(bundle.file(variant.files[0]), variant.runner, variant.precision)
        now = fidelity.embed_pairs(graph, encoder, collator, pairs)
        narrow = variants.alone(bundle.manifest, variant).dimensions < bundle.manifest.dimensions
        alone = float("nan") if narrow else ndcg(now.queries, whole.documents) / best
        kept[variant.name] = ndcg(now.queries, now.documents) / best, alone
    return kept


def _figures(
    bundle: bundles.Bundle, variant: manifests.BundleVariant, found: dict[str, tuple[float, float]]
) -> dict[str, Any]:
    card = variant.report.fidelity
    assert card is not None
    before = linear_parameters(bundle.file(bundle.manifest.variants[0].files[0]))
    own, alone = (round(each, 4) for each in found[variant.name])
    return {
        "name": variant.name,
        "passes": msgspec.to_builtins(variant.passes),
        "speed": round(typical(card.speedup), 3),
        "removed": round(1 - linear_parameters(bundle.file(variant.files[0])) / before, 3),
        "outside": own,
        "outside_query_only": None if math.isnan(alone) else alone,
        **msgspec.to_builtins(card),
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


def report(name: str, record: dict[str, Any]) -> None:
    """The tables, and the targets."""
    variants = record["variants"]
    print(
        f"\n{name}\n{'variant':26} {'worst':>6} {'interval':>14} {'q-only':>7} {'outside':>8} {'q-only':>7} "
        f"{'speed':>6} {'MB':>6} {'removed':>8} {'batch cos':>10}"
    )
    for each in variants:
        kept, alone = each["ndcg"], each["outside_query_only"]
        print(
            f"{each['name']:26} {kept['value']:6.3f} {kept['low']:6.3f} - {kept['high']:5.3f} "
            f"{each['query_only_ndcg']['value']:7.3f} {each['outside']:8.3f} "
            f"{'-' if alone is None else format(alone, '.3f'):>7} {each['speed']:5.2f}x "
            f"{each['bytes'] / 1e6:6.1f} {each['removed']:8.0%} {each['batch_min_cosine']:10.7f}"
        )
        for kind in each["sets"]:
            told = f"{kind['ndcg']['value']:.3f} ({kind['ndcg']['low']:.3f} - {kind['ndcg']['high']:.3f})"
            print(f"    {kind['kind']}, {kind['name']}: {told}, {kind['query_only_ndcg']['value']:.3f}")
    _cells(record["cells"])
    for floor, bar in zip(FLOORS, SPEEDS[name], strict=True):
        keeping = [each for each in variants if each["ndcg"]["value"] >= floor]
        fastest = max(keeping, key=_speed, default=None)
        found = f"{fastest['speed']:.2f}x by {fastest['name']}" if fastest else "none"
        print(f"speed at nDCG >= {floor}, worst set: {found} (wanted: {bar}x)")
    keeping = [each for each in variants if each["ndcg"]["value"] >= FLOORS[0]]
    smallest = min((each["bytes"] / 1e6 for each in keeping), default=math.nan)
    print(f"smallest file at nDCG >= {FLOORS[0]}: {smallest:.1f} MB (wanted: {SMALLEST[name]})")
    least = min((each["batch_min_cosine"] for each in variants), default=0)
    print(f"least cosine of a text alone to itself in a batch: {least:.7f} (wanted: {LEAST_BATCH_COSINE})")
    below = max((each["ndcg"]["value"] - each["outside"] for each in variants), default=0)
    print(f"most that a card says more than is kept outside: {below:+.3f} (wanted: {NEAR})")
    print(f"the whole search: {record['minutes']} minutes (wanted: {MINUTES})")


def _cells(cells: list[dict[str, Any]]) -> None:
    if not cells:
        return
    print("\ndepth x width, without training: nDCG kept with an index of its own / queries alone")
    widths = sorted({cell["dimensions"] for cell in cells}, reverse=True)
    print(f"{'layers':>6} " + " ".join(f"{each:>13}" for each in widths))
    for depth in sorted({cell["layers"] for cell in cells}):
        row = [
            f"{cell['ndcg']:.3f} / {cell['query_only_ndcg']:.3f}" for cell in cells if cell["layers"] == depth
        ]
        print(f"{depth:6} " + " ".join(row))
    print()


def _speed(figures: dict[str, Any]) -> float:
    return float(figures["speed"])


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
