"""What it costs to run a device's graphs in their own process, and how long its end delays calls.

    python -m bench.isolation models

Two servers, one with threads and one with a process, are up at the same time and take turns. The median of
the rounds counts. CPU time, which other load disturbs least, is given beside the rate. Then the process is
killed repeatedly, and a call made at that moment is timed; this includes opening the session, which is also
measured alone.
"""

import argparse
import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import trimtab
from bench import data, processes
from bench.report import append
from trimtab.artifacts import bundle as bundles
from trimtab.inputs.text import TextInput
from trimtab_server.catalog.encoder import model_of
from trimtab_server.engine.runners.onnx import OnnxRunner

IN_FLIGHT = 8
CONFIG = '[engine]\ncosts = ""\nisolation = "{}"\n'


def server(repository: Path, isolation: str, cores: list[int]) -> processes.Serving:
    """One of the two servers."""
    config = processes.LOGS / f"isolation-{isolation}.toml"
    config.write_text(CONFIG.format(isolation))
    command = [processes.PYTHON, "-m", "trimtab.cli", "serve", "--repository", str(repository)]
    command += ["--config", str(config), "--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    return processes.serve(f"isolation-{isolation}", command, cores, processes.said_ready)


async def load(url: str, requests: list[list[str]]) -> float:
    """Send requests, so many in flight. Returns the seconds that all of them took."""
    async with trimtab.AsyncClient(url) as client:
        waiting = iter(requests)

        async def worker() -> None:
            for texts in waiting:
                await client.embed(texts)

        begun = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        return time.perf_counter() - begun


async def recover(url: str, pid: int, kills: int) -> list[float]:
    """Seconds from a kill -9 of the device's process to the answer of a call made at the same moment."""
    seconds = []
    async with trimtab.AsyncClient(url) as client:
        expected = await client.embed(["a text"])
        for _ in range(kills):
            for _ in range(20):  # so that the next kill does not look like a process that keeps ending
                await client.embed(["another text"])
            os.kill(child_of(pid), signal.SIGKILL)
            begun = time.perf_counter()
            vectors = await client.embed(["a text"])
            seconds.append(time.perf_counter() - begun)
            if abs(vectors - expected).max() > 1e-5:
                raise SystemExit("a wrong vector")
    return seconds


def child_of(pid: int) -> int:
    """The process that the server has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            return int(stat.parent.name)
    raise SystemExit(f"process {pid} has no child")


def open_seconds(repository: Path) -> float:
    """The time to open the repository's sessions, one after another."""
    found = [bundles.read(path) for *_, path in bundles.versions(repository)]
    models = [
        model_of(bundle, bundle.manifest.variants[0], TextInput(bundle.manifest.variants[0].inputs))
        for bundle in found
    ]
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        sessions = [OnnxRunner(model, "cpu") for model in models]
        times.append(time.perf_counter() - begun)
        del sessions
    return statistics.median(times)


def compare(
    servers: Mapping[str, processes.Running], requests: list[list[str]], rounds: int
) -> dict[str, float]:
    """The process's rate and CPU time per text relative to the threads': medians of the rounds."""
    texts = sum(map(len, requests))
    rates: dict[str, list[float]] = {each: [] for each in servers}
    spent: dict[str, list[float]] = {each: [] for each in servers}
    for number in range(rounds + 1):
        for each, running in servers.items():
            before = running.cpu_seconds()
            took = asyncio.run(load(running.url, requests))
            if number:  # the first warms up
                rates[each].append(texts / took)
                spent[each].append((running.cpu_seconds() - before) / texts * 1e3)
    rate = statistics.median(p / t for p, t in zip(rates["process"], rates["thread"], strict=True))
    cpu = statistics.median(p / t for p, t in zip(spent["process"], spent["thread"], strict=True))
    return {
        "rate_ratio": round(rate, 3),
        "cpu_ratio": round(cpu, 3),
        "thread_rate": round(statistics.median(rates["thread"]), 1),
        "process_rate": round(statistics.median(rates["process"]), 1),
        "thread_ms": round(statistics.median(spent["thread"]), 3),
        "process_ms": round(statistics.median(spent["process"]), 3),
    }


def recovery(seconds: list[float], opening: float) -> dict[str, float]:
    """How long a call was delayed by kills, beyond what opening the session takes."""
    beyond = [each - opening for each in seconds]
    return {
        "kills": len(seconds),
        "open_seconds": round(opening, 3),
        "median_beyond": round(statistics.median(beyond), 3),
        "most_beyond": round(max(beyond), 3),
    }


def main() -> None:
    """Measure, print, append to the history."""
    options = _options()
    processes.LOGS.mkdir(exist_ok=True)
    texts = data.mix("short", options.texts)
    shapes = {
        "one text a call": [[text] for text in texts],
        "32 texts a call": [texts[first : first + 32] for first in range(0, len(texts), 32)],
    }
    cores = sorted(os.sched_getaffinity(0))
    costs = {}
    with ExitStack() as stack:
        servers = {
            each: stack.enter_context(server(options.repository, each, cores))
            for each in ("thread", "process")
        }
        for shape, requests in shapes.items():
            cost = costs[shape] = compare(servers, requests, options.rounds)
            rate, cpu = cost["rate_ratio"], cost["cpu_ratio"]
            sys.stdout.write(f"{shape:<18} rate x{rate:.3f}, CPU x{cpu:.3f} of threads' {cost}\n")
        isolated = servers["process"]
        seconds = asyncio.run(recover(isolated.url, isolated.pid, options.kills))
    recovered = recovery(seconds, open_seconds(options.repository))
    sys.stdout.write(f"after kill -9: {recovered}\n")
    append(
        "isolation",
        texts=options.texts,
        rounds=options.rounds,
        load=[round(each, 1) for each in os.getloadavg()],
        costs=costs,
        recovery=recovered,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--texts", type=int, default=400, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kills", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
