"""What a call of one text costs the server beyond a bare grpc.aio echo, with an encoder that costs nothing.

    python -m bench.call_cost models
    python -m bench.call_cost models --against ../other=../other/models

All servers are up at the same time, on one core, and are timed in turns, so that other work of the machine
affects all of them equally. --against names another checkout of Trimtab, with its own environment in .venv,
and a repository that it can read. Figures are user and system time of the server's process.
"""

import argparse
import contextlib
import statistics
from pathlib import Path

from bench import overhead, processes, report
from bench.processes import Running

KINDS = ("raw", "triton", "stream")
IN_FLIGHT = {"stream": 256}


def _other(core: int, tree: Path, repository: Path) -> processes.Serving:
    python = str(tree.resolve() / ".venv" / "bin" / "python")
    command = [python, "-m", "bench.fake_server", str(repository.resolve()), "--devices", "1"]
    return processes.serve("other", command, core, processes.said_ready, cwd=tree)


def measure(
    repository: Path, against: tuple[Path, Path] | None, rounds: int, texts: int
) -> dict[str, dict[str, list[float]]]:
    """Microseconds per call, by kind of client and server, one figure per round."""
    cores, rows = processes.cores(), {kind: dict[str, list[float]]() for kind in KINDS}
    with contextlib.ExitStack() as stack:
        servers: dict[str, Running] = {
            "echo": stack.enter_context(overhead.echo(cores.server)),
            "ours": stack.enter_context(overhead.fake(repository, cores.server, 1, 0.0)),
        }
        if against is not None:
            servers["other"] = stack.enter_context(_other(cores.server, *against))
        for _ in range(rounds):
            for kind in KINDS:
                for name, server in servers.items():
                    echo = name == "echo"
                    row = overhead.timed(
                        server, cores, "raw" if echo else kind, 64 if echo else IN_FLIGHT.get(kind, 64),
                        texts if echo or kind != "stream" else 4 * texts,
                    )  # fmt: skip
                    rows[kind].setdefault(name, []).append(round(row["server_ms"] * 1000, 1))
    return rows


def main() -> None:
    """Measure, print, append to the history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--against", metavar="TREE=REPOSITORY")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=2000, help="of each load; four times as many in streams")
    options = parser.parse_args()
    against = None
    if options.against:
        tree, _, other = options.against.partition("=")
        against = Path(tree), Path(other)
    rows = measure(options.repository.resolve(), against, options.rounds, options.texts)
    for kind, servers in rows.items():
        for name, figures in servers.items():
            ratios = [one / echo for one, echo in zip(figures, servers["echo"], strict=True)]
            median, ratio = statistics.median(figures), statistics.median(ratios)
            print(f"{kind:8}{name:8}{median:8.0f} us   {ratio:6.2f} of the echo   {figures}")
    report.append("call_cost", microseconds=rows)


if __name__ == "__main__":
    main()
