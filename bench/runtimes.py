"""What a variant for OpenVINO gains over ONNX Runtime: one server with both, which are loaded in turns.

    python -m bench.runtimes models --encoder all-minilm-l6-v2 --variant bf16

The server has one core, the load generator another. For each mix there are one call in flight, 32, and a
stream, and the limit of each variant: the bare loop on the server's core (bench/limit.py). The ratio of each
round is that of two loads in a row; the median of the rounds counts. What the variant keeps is on its report
card, which is recorded with it.
"""

import argparse
import statistics
import sys
from pathlib import Path

import msgspec

from bench import data, processes
from bench.processes import Cores, Running, Serving, program
from bench.report import append
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import variants
from trimtab.artifacts.bundle import Bundle

FIRST = ""  # asks for the first variant, the encoder as it is
CONFIG = 'devices = ["cpu"]\n[engine]\ncosts = ""\n[encoders."{}"]\nvariants = ["{}"]\n'
LOADS: dict[str, tuple[object, ...]] = {
    "1": ("--kind", "sdk", "--concurrency", 1),
    "32": ("--kind", "sdk", "--concurrency", 32),
    "stream": ("--kind", "stream"),
}
# A single call takes longer, and needs fewer.
SHARE = {"1": 0.25}


def server(options: argparse.Namespace, core: int) -> Serving:
    """The server with both variants."""
    processes.LOGS.mkdir(exist_ok=True)
    config = processes.LOGS / "runtimes.toml"
    config.write_text(CONFIG.format(options.encoder, options.variant))
    command = [processes.PYTHON, "-m", "trimtab.cli", "serve", "--repository", str(options.repository)]
    command += ["--config", str(config), "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    return processes.serve("runtimes", command, core, processes.said_ready)


def load(
    options: argparse.Namespace, running: Running, cores: Cores, mix: str, row: str, variant: str
) -> float:
    """Texts per second of one load."""
    texts = round(options.texts[mix] * SHARE.get(row, 1))
    figures = program(
        "bench.load", running.url, "--core", cores.client, "--mix", mix, "--texts", texts, "--encoder",
        options.encoder, "--width", options.width, "--variant", variant, *LOADS[row],
    )  # fmt: skip
    return float(figures["rate"])


def limit(options: argparse.Namespace, cores: Cores, mix: str, variant: str) -> float:
    """Texts per second of the bare loop."""
    bundle = options.repository / options.encoder / "1"
    asked = ("--core", cores.server, "--mix", mix, "--texts", options.texts[mix], "--variant", variant)
    return float(max(program("bench.limit", bundle, *asked).values()))


def measure(options: argparse.Namespace, cores: Cores) -> dict[str, dict[str, dict[str, float]]]:
    """By mix and row: both rates, and the variant's relative to the first's; medians of the rounds."""
    rounds: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for number in range(options.rounds):
        for mix in options.texts:
            rows = rounds.setdefault(mix, {})
            both = (FIRST, options.variant)
            limits = [limit(options, cores, mix, each) for each in both]
            rows.setdefault("limit", []).append((limits[0], limits[1]))
            with server(options, cores.server) as running:
                for row in LOADS:
                    rates = [load(options, running, cores, mix, row, each) for each in both]
                    rows.setdefault(row, []).append((rates[0], rates[1]))
            for row, rates_of in rows.items():
                first, second = rates_of[-1]
                sys.stdout.write(
                    f"round {number + 1}  {mix:<8}{row:<8}{first:8.1f}{second:8.1f}  x{second / first:.2f}\n"
                )
                sys.stdout.flush()
    return {mix: {row: _medians(each) for row, each in rows.items()} for mix, rows in rounds.items()}


def _medians(rates: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "first": round(statistics.median(first for first, _ in rates), 1),
        "variant": round(statistics.median(second for _, second in rates), 1),
        "ratio": round(statistics.median(second / first for first, second in rates), 3),
    }


def read(options: argparse.Namespace) -> Bundle:
    """The bundle; SystemExit if it has no such variant."""
    bundle = bundles.read(options.repository / options.encoder / "1")
    if variants.named(bundle.manifest, options.variant) is None:
        raise SystemExit(
            f"{bundle.path} has no variant {options.variant}, but {variants.names(bundle.manifest.variants)}"
        )
    return bundle


def main() -> None:
    """Measure, print, append to the history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--encoder", default="all-minilm-l6-v2")
    parser.add_argument("--variant", default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", type=int, default=2400, help="short texts of a load")
    parser.add_argument("--mixed", type=int, default=1000, help="mixed texts of a load")
    options = parser.parse_args()
    options.repository = options.repository.resolve()
    options.texts = {"short": options.short, "mixed": options.mixed}
    assert options.texts.keys() <= data.MIXES.keys()
    bundle = read(options)
    options.width = bundle.manifest.dimensions
    found = measure(options, processes.cores())
    for mix, rows in found.items():
        for row, each in rows.items():
            told = f"{each['first']:8.1f}{each['variant']:8.1f}  x{each['ratio']:.2f}"
            sys.stdout.write(f"{mix:<8}{row:<8}{told}\n")
    variant = variants.named(bundle.manifest, options.variant)
    append(
        "runtimes", encoder=options.encoder, rounds=options.rounds, texts=options.texts, rates=found,
        variant=options.variant, card=msgspec.to_builtins(variant.report.fidelity) if variant else None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
