"""What sparse and multi-vectors cost beside dense ones, from one pass of an encoder in BGE-M3's form.

    python -m bench.three_outputs

The encoder is all-MiniLM-L6-v2 with two seeded layers beside it: a weight for each token, and a vector as
wide as its states. Time: three outputs relative to dense vectors alone, in turns, by the graph on one thread
and by calls of a server on one core. Memory: what a graph takes at most for 64 texts of 512 tokens, each time
in a process of its own.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import trimtab
from bench import data, encoders, processes
from bench.report import append
from trimtab.artifacts import bundle as bundles
from trimtab_export import runtime
from trimtab_export.export import export
from trimtab_export.source import Settings

FOLDER = Path(__file__).parent / ".data" / "three-outputs"
NAME = "three"
HIDDEN = 384
DENSE = ("dense",)
ALL = ("dense", "sparse", "multi_vector")
SHAPES = ((1, 16), (8, 32), (32, 128))
LARGE = (64, 512)
CALL = 32  # texts in a call
ROUNDS = 15


def made() -> Path:
    """The bundle; exported if missing."""
    bundle = FOLDER / "models" / NAME / "1"
    if not encoders.exported(bundle):
        source = FOLDER / "source"
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(encoders.source(encoders.L6), source)
        generator = torch.Generator().manual_seed(0)
        for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", HIDDEN)):
            weight = torch.randn(rows, HIDDEN, generator=generator) / HIDDEN**0.5
            torch.save({"weight": weight, "bias": torch.zeros(rows)}, source / name)
        export(Settings(str(source), max_tokens=LARGE[1]), NAME, FOLDER / "models")
    return bundle


def tensors(bundle: Path, outputs: Sequence[str]) -> list[str]:
    """The graph's tensors of these outputs."""
    found = bundles.read(bundle, verify=False).manifest.variants[0].tensors
    mine = [tensor for name, tensor in found.items() if name.partition(".")[0] in outputs]
    return list(dict.fromkeys(name for each in mine for name in (each.name, each.offsets) if name))


def feeds(texts: int, tokens: int) -> dict[str, np.ndarray]:
    """Random words; all texts are equally long."""
    ids = np.random.default_rng(0).integers(2000, 20_000, (texts, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def by_graph(bundle: Path) -> dict[str, float]:
    """The ratio of times at each shape."""
    session = runtime.session(bundle / "fp32" / "model.onnx", threads=1)
    names: dict[Sequence[str], list[str]] = {each: tensors(bundle, each) for each in (DENSE, ALL)}

    def ratio(texts: int, tokens: int) -> float:
        batch = feeds(texts, tokens)
        return in_turns(lambda number, outputs: runtime.run_all(session, names[outputs], batch))

    return {f"{texts}x{tokens}": ratio(texts, tokens) for texts, tokens in SHAPES}


def by_server(bundle: Path, cores: processes.Cores) -> dict[str, float]:
    """The ratio of times of a call, by mix of texts."""
    with (
        processes.trimtab(bundle.parents[1], cores.server) as running,
        trimtab.Client(running.url, timeout=100) as client,
    ):

        def ratio(mix: str) -> float:
            texts = data.mix(mix, CALL * (ROUNDS + 1))
            return in_turns(
                lambda number, outputs: client.embed_outputs(texts[CALL * number :][:CALL], outputs)
            )

        return {mix: ratio(mix) for mix in ("short", "mixed")}


def in_turns(act: Callable[[int, Sequence[str]], object]) -> float:
    """The median time for all outputs relative to that for dense vectors. `act` gets the round's number and
    the outputs."""
    seconds: dict[Sequence[str], list[float]] = {DENSE: [], ALL: []}
    for number in range(ROUNDS + 1):
        for outputs, into in seconds.items():
            begun = time.perf_counter()
            act(number, outputs)
            into.append(time.perf_counter() - begun)
    dense, three = (statistics.median(each[1:]) for each in seconds.values())  # the first run allocates
    return round(three / dense, 3)


def peak(bundle: Path, outputs: Sequence[str]) -> float:
    """MiB that a run of LARGE takes at most, beyond the open graph."""
    names = json.dumps(tensors(bundle, outputs))
    command = [sys.executable, "-m", "bench.three_outputs", "--peak", names]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=processes.ROOT)
    return float(done.stdout)


def print_peak(bundle: Path, names: Sequence[str]) -> None:
    """The program of `peak`'s process."""
    session = runtime.session(bundle / "fp32" / "model.onnx", threads=1)
    runtime.run_all(session, names, feeds(1, 16))
    batch, before = feeds(*LARGE), _peak()
    runtime.run_all(session, names, batch)
    sys.stdout.write(f"{_peak() - before:.1f}\n")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, print, append to the history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    bundle = made()
    if options.peak is not None:
        print_peak(bundle, json.loads(options.peak))
        return
    graph, served = by_graph(bundle), by_server(bundle, processes.cores())
    dense, three = (peak(bundle, outputs) for outputs in (DENSE, ALL))
    for where, ratios in (("graph", graph), ("server", served)):
        for name, ratio in ratios.items():
            sys.stdout.write(f"time, {where}, {name:8} {ratio:.2f} times that of dense vectors alone\n")
    sys.stdout.write(
        f"memory, {LARGE[0]}x{LARGE[1]}    {three / dense:.2f} times ({dense:.0f} and {three:.0f} MiB)\n"
    )
    append(
        "three_outputs", graph=graph, server=served, mebibytes={"dense": dense, "three": three},
        memory=round(three / dense, 3),
    )  # fmt: skip


if __name__ == "__main__":
    main()
