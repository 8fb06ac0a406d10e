"""Results: collected by mix, server and row, printed as a table, recorded as lines of JSON."""

import contextlib
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import processes
from bench.processes import ROOT

HISTORY = ROOT / "bench" / "history"
PACKAGES = ("trimtab", "onnxruntime", "openvino", "grpcio", "tokenizers", "tritonclient", "numpy")
# Heading and format of a table's figures, in this order; a row may lack some.
COLUMNS = {
    "rate": ("texts/s", ".1f"),
    "of_limit": ("of limit", ".3f"),
    "p50": ("p50 ms", ".1f"),
    "p99": ("p99 ms", ".1f"),
    "lag_p99": ("lag p99", ".2f"),
    "lag_max": ("lag max", ".2f"),
    "padding": ("padding", ".3f"),
    "server_ms": ("cpu ms", ".3f"),
    "to_echo": ("to echo", ".2f"),
    "server_busy": ("srv busy", ".2f"),
    "client_busy": ("cli busy", ".2f"),
    "feed_rate": ("feed/s", ".1f"),
    "feed_share": ("feed of", ".3f"),
    "ratio": ("ratio", ".2f"),
    "call": ("call ms", ".2f"),
    "session": ("session", ".2f"),
    "added": ("added", ".2f"),
    "added_each": ("each", ".2f"),
    "around": ("around", ".2f"),
    "cosine": ("cosine", ".6f"),
}
LEGEND = """\
of limit: share of the bare loop's rate in the same round     lag: how late the generator sent, ms
padding: share of padding in the computed tokens     cpu ms: the server's CPU time per text
srv, cli busy: share of their cores used; a client near 1 was the bottleneck, and a server
far above 1 has escaped its core
feed/s: documents a second below the queries; feed of: their share of the feed's rate alone
ratio: eight simulated devices over one     added: p50 of a call minus p50 of the bare session;
each: median of the differences; around: the time of a call minus the run time that its server reports"""


@dataclass(frozen=True, slots=True)
class Results:
    """Figures by part or mix, server and row; each a list with one entry a round."""

    rows: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = field(default_factory=dict)

    def note(self, part: str, server: str, row: str, **figures: float) -> None:
        """One round's figures of a row."""
        kept = self.rows.setdefault(part, {}).setdefault(server, {}).setdefault(row, {})
        for name, value in figures.items():
            kept.setdefault(name, []).append(float(f"{value:.5g}"))

    def show(self, part: str, server: str, row: str) -> None:
        """Print the last round's figures of a row."""
        figures = self.rows[part][server][row]
        told = [
            f"{heading} {format(figures[name][-1], spec)}"
            for name, (heading, spec) in COLUMNS.items()
            if name in figures
        ]
        print(f"  {part:<9}{server:<9}{row:<20}{'  '.join(told)}", flush=True)

    def table(self) -> str:
        """The medians of the rounds, one block per part."""
        lines = []
        for part, servers in self.rows.items():
            rows = [(server, row, figures) for server in servers for row, figures in servers[server].items()]
            names = [name for name in COLUMNS if any(name in figures for _, _, figures in rows)]
            headings = "".join(f"{COLUMNS[name][0]:>10}" for name in names)
            lines += ["", f"{part:<10}{'':<20}{headings}"]
            for server, row, figures in rows:
                cells = (
                    format(statistics.median(figures[name]), COLUMNS[name][1]) if name in figures else ""
                    for name in names
                )
                lines.append(f"{server:<10}{row:<20}" + "".join(f"{cell:>10}" for cell in cells))
        return "\n".join([*lines, "", LEGEND])


def keep(results: Results, peers: Mapping[str, Mapping[str, str]], **settings: Any) -> None:
    """Append a run of the serving benchmark to the history."""
    append("serve", peers, **settings, results=results.rows)


def append(
    name: str,
    peers: Mapping[str, Mapping[str, str]] | None = None,
    folder: Path = HISTORY,
    **figures: Any,
) -> None:
    """Append figures to a history, with the command, commit, machine and versions."""
    spec = sys.modules["__main__"].__spec__
    program = spec.name if spec else "bench"
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", program.removesuffix(".__main__"), *sys.argv[1:]]),
        "machine": processes.machine(),
        "versions": {
            "python": sys.version.split()[0],
            **_versions(),
            **({"peers": peers} if peers else {}),
        },
        **figures,
    }
    path = folder / f"{name}.jsonl"
    folder.mkdir(exist_ok=True)
    with path.open("a") as history:
        history.write(json.dumps(record) + "\n")
    print(f"kept in {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


def _commit() -> str:
    """What is measured, as Git calls it; "" without Git, as in a container."""
    with contextlib.suppress(FileNotFoundError):
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _versions() -> dict[str, str]:
    """The installed ones of PACKAGES. ONNX Runtime for GPUs is a package of another name."""
    versions = {}
    for name in (*PACKAGES, "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
