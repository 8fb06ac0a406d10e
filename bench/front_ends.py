"""What front ends in processes of their own cost: CPU time of a call of one text, there and in the engine.

    python -m bench.front_ends models
    python -m bench.front_ends models --front-ends 1 2 4 --rounds 5

The encoder costs nothing. All processes of all servers share one core, and the loads another, so the figures
are CPU time, not rates: "calls a second" is what a core that does only that could do. The servers are timed
in turns, beside a bare grpc.aio echo, so that other work of the machine affects all of them. Each server gets
several loads at a time, since the kernel spreads connections, not calls, over front ends.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from bench import overhead, processes, report
from bench.processes import Cores, Running

LOADS = 8


def _program(pid: int) -> str:
    """Which part of a server a process is."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return "gone"
    if "trimtab_server.processes.front_end" in arguments:
        return "front ends"
    return "engine" if "-P" in arguments else "server"


def timed(server: Running, cores: Cores, kind: str, concurrency: int, texts: int) -> dict[str, float]:
    """Microseconds of CPU time per call of one text, by part of the server, with LOADS loads at a time."""
    command = [
        processes.PYTHON, "-m", "bench.load", server.url, "--core", str(cores.client), "--kind", kind,
        "--mix", "short", "--texts", str(texts // LOADS), "--concurrency", str(concurrency // LOADS),
    ]  # fmt: skip
    before = server.cpu_by_process()
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(LOADS)]
        running = [subprocess.Popen(command, cwd=processes.ROOT, stdout=each) for each in files]
        for load, file in zip(running, files, strict=True):
            if load.wait(900):
                raise RuntimeError("a load has failed: see above")
            file.seek(0)
            json.loads(file.read())
    parts: dict[str, float] = {}
    for pid, seconds in server.cpu_by_process().items():
        part = _program(pid)
        parts[part] = parts.get(part, 0.0) + seconds - before.get(pid, 0.0)
    calls = texts // LOADS * LOADS + 32 * LOADS  # with each load's warm-up
    return {part: round(seconds / calls * 1e6, 1) for part, seconds in parts.items()}


def measure(
    repository: Path, numbers: list[int], rounds: int, texts: int, concurrency: int, kind: str
) -> dict[str, dict[str, list[float]]]:
    """By number of front ends and by part of the server: one figure per round."""
    cores = processes.cores()
    rows: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        servers = {"echo": stack.enter_context(overhead.echo(cores.server))}
        for number in numbers:
            servers[str(number)] = stack.enter_context(
                overhead.fake(repository, cores.server, 1, 0.0, front_ends=number)
            )
        for _ in range(rounds):
            for name, server in servers.items():
                figures = timed(server, cores, "raw" if name == "echo" else kind, concurrency, texts)
                for part, microseconds in figures.items():
                    rows.setdefault(name, {}).setdefault(part, []).append(microseconds)
    return rows


def main() -> None:
    """Measure, print, append to the history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--front-ends", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=8000, help="of each round")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--kind", default="raw", help="of client: raw, sdk or triton")
    options = parser.parse_args()
    rows = measure(
        options.repository.resolve(), options.front_ends, options.rounds, options.texts,
        options.in_flight, options.kind,
    )  # fmt: skip
    print(f"{'front ends':12}{'part':12}{'us a call':>10}{'calls/s a core':>16}")
    for name, parts in rows.items():
        for part, figures in parts.items():
            median = statistics.median(figures)
            rate = f"{1e6 / median:16,.0f}" if median >= 1 else ""
            print(f"{name:12}{part:12}{median:10.1f}{rate}   {figures}")
    report.append("front_ends", kind=options.kind, in_flight=options.in_flight, microseconds=rows)


if __name__ == "__main__":
    main()
