"""How near the server comes to the bare ONNX Runtime loop: served texts per second over the limit.

    make bench

The server has one core, the load generator another; the limit runs on the server's core, in the same
run, before each round of loads, since machines drift. Every round gives ratios; the median of the
rounds counts. Results are appended to bench/history/serve.jsonl and drawn to docs/serve.png.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.limit import BATCH_SIZES

ROOT = Path(__file__).parent.parent
HISTORY = ROOT / "bench" / "history" / "serve.jsonl"
PICTURE = ROOT / "docs" / "serve.png"
CONCURRENCY = (1, 8, 32, 64)
TEXTS = {"short": 1200, "mixed": 500}


def program(module: str, *arguments: object) -> dict[str, Any]:
    """Run one of the benchmark's programs and read its JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=600)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def start_server(repository: Path, core: int) -> tuple[subprocess.Popen[str], str]:
    """A server on one core, and its address once it is ready."""
    command = [sys.executable, "-m", "trimtab.cli", "serve", "--repository", str(repository)]
    command += ["--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("the server did not start")
    return process, line.partition(" on ")[2].partition(",")[0]


def measure(repository: Path, encoder: str, rounds: int) -> dict[str, Any]:
    """Rounds of limit and loads; every figure as a list, one entry a round."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this needs two cores: one for the server, one for the load")
    results: dict[str, Any] = {}

    def note(mix: str, row: str, **figures: float) -> None:
        for name, value in figures.items():
            results.setdefault(mix, {}).setdefault(row, {}).setdefault(name, []).append(value)

    process, url = start_server(repository, cores[0])
    try:
        for number in range(rounds):
            for mix, texts in TEXTS.items():
                options = ("--mix", mix, "--texts", texts)
                bundle = repository / encoder / "1"
                rates = program("bench.limit", bundle, "--core", cores[0], *options)
                limit = max(rates.values())
                note(mix, "limit", rate=limit, **{f"batch_{size}": rates[str(size)] for size in BATCH_SIZES})
                for concurrency in (*CONCURRENCY, None):
                    extra = () if concurrency is None else ("--concurrency", concurrency)
                    load = program("bench.load", url, "--core", cores[1], *options, *extra)
                    row = "stream" if concurrency is None else str(concurrency)
                    note(mix, row, ratio=load["rate"] / limit, **load)
                    print(
                        f"round {number + 1}  {mix:<6} {row:>6}  {load['rate']:7.1f} texts/s  "
                        f"{load['rate'] / limit:5.2f} of the limit  p99 {load.get('p99', 0):7.1f} ms",
                        flush=True,
                    )
    finally:
        process.terminate()
        process.wait()
    return results


def draw(results: dict[str, Any]) -> None:
    """Throughput and p99 against calls in flight, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for mix, color in zip(TEXTS, ("tab:blue", "tab:orange"), strict=True):
        rows = [results[mix][str(concurrency)] for concurrency in CONCURRENCY]
        rates = [statistics.median(row["rate"]) for row in rows]
        left.plot(CONCURRENCY, rates, "o-", color=color, label=f"{mix}: trimtab")
        limit = statistics.median(results[mix]["limit"]["rate"])
        left.axhline(limit, color=color, linestyle="--", label=f"{mix}: bare ONNX Runtime loop")
        right.plot(CONCURRENCY, [statistics.median(row["p99"]) for row in rows], "o-", color=color, label=mix)
    for axes, title in ((left, "texts per second"), (right, "p99 latency, ms")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(CONCURRENCY, map(str, CONCURRENCY))
        axes.set_xlabel("calls in flight, one text each")
        axes.set_title(title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle("all-MiniLM-L6-v2 fp32, server on one CPU core, client on another", fontsize=10)
    figure.savefig(PICTURE, dpi=110)


def machine() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Measure, append to the history, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=ROOT / "models")
    parser.add_argument("--encoder", default="all-minilm-l6-v2")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results = measure(options.repository.resolve(), options.encoder, options.rounds)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit,
        "command": f"python -m bench.serve --rounds {options.rounds}",
        "machine": f"{machine()}, {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in ("onnxruntime", "grpcio", "tokenizers")},
        "encoder": options.encoder,
        "texts": TEXTS,
        "results": results,
    }
    HISTORY.parent.mkdir(exist_ok=True)
    with HISTORY.open("a") as history:
        history.write(json.dumps(record) + "\n")
    draw(results)
    print(f"\nmedian of {options.rounds} rounds")
    print(f"{'mix':<8}{'in flight':>10}{'texts/s':>10}{'of limit':>10}{'p50 ms':>10}{'p99 ms':>10}")
    for mix, rows in results.items():
        for row, figures in rows.items():
            middle = {name: statistics.median(values) for name, values in figures.items()}
            print(
                f"{mix:<8}{row:>10}{middle['rate']:>10.1f}{middle.get('ratio', 1):>10.3f}"
                f"{middle.get('p50', 0):>10.1f}{middle.get('p99', 0):>10.1f}"
            )


if __name__ == "__main__":
    main()
