"""A server on the measured device, and loads from several processes that begin together."""

import contextlib
import json
import os
import statistics
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import processes
from bench.gpu.devices import Row
from bench.gpu.run import Run
from bench.processes import Running

TOLD = 400  # characters of a server's log
BUSY, FAILURES, RESTARTS, SHARED = (
    "trimtab_device_busy_seconds_total", "trimtab_device_failures_total", "trimtab_device_restarts_total",
    "trimtab_shared_texts_total",
)  # fmt: skip


def cores() -> tuple[list[int], list[int]]:
    """The server's cores, and those of the loads: a third of all, and one at least."""
    available = sorted(os.sched_getaffinity(0))
    loads = max(1, len(available) // 3)
    return available[:-loads] or available, available[-loads:]


@contextlib.contextmanager
def server(
    run: Run, name: str, *, repository: Path | None = None, front_ends: int = 0, isolation: str = "thread"
) -> Iterator[Running]:
    """`trimtab serve` on the device. RuntimeError, with what it says, if it does not start."""
    processes.LOGS.mkdir(exist_ok=True)
    name = f"gpu-{name}-{os.getpid()}"
    config, log = (processes.LOGS / f"{name}.{suffix}" for suffix in ("toml", "log"))
    config.write_text(
        f'devices = ["{run.device}"]\n[server]\nfrontends = {front_ends}\n'
        f'[engine]\ncosts = ""\nisolation = "{isolation}"\n'
    )
    command = [processes.PYTHON, "-m", "trimtab.cli", "serve", "--config", str(config)]
    command += ["--repository", str(repository or run.graphs.repository)]
    command += ["--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    started = False
    try:
        with processes.serve(name, command, cores()[0], processes.said_ready) as running:
            started = True
            yield running
    except RuntimeError:
        if started:
            raise
        said = " ".join(log.read_text(errors="replace").split())
        raise RuntimeError(f"the server did not start: {said[-TOLD:]}") from None
    finally:
        for path in (config, log):
            path.unlink(missing_ok=True)


def samples(server: Running) -> dict[str, dict[str, float]]:
    """The metrics of interest: the sum over all other labels, by device ("" for metrics without)."""
    found: dict[str, dict[str, float]] = {name: {} for name in (BUSY, FAILURES, RESTARTS, SHARED)}
    with urllib.request.urlopen(server.metrics_url, timeout=20) as response:
        for line in response.read().decode().splitlines():
            name, _, labels = line.rpartition(" ")[0].partition("{")
            if name in found:
                device = labels.partition('device="')[2].partition('"')[0]
                found[name][device] = found[name].get(device, 0.0) + float(line.rpartition(" ")[2])
    return found


def where(server: Running) -> str:
    """The devices that have done the server's work, by its metrics."""
    return ", ".join(sorted(name for name, seconds in samples(server)[BUSY].items() if seconds > 0))


def load(server: Running, *, kind: str, mix: str, loads: int, texts: int, in_flight: int, width: int) -> Row:
    """So many loads at a time, each with its own texts and connection; the rate of all, from their common
    beginning to the last answer. `p99_ms` is that of the load that has the worst."""
    where_to = cores()[1]
    with contextlib.ExitStack() as stack:
        running = []
        for number in range(loads):
            command = [
                processes.PYTHON, "-m", "bench.load", server.url, "--kind", kind, "--mix", mix,
                "--width", width, "--core", where_to[number % len(where_to)], "--texts", texts,
                "--skip", number * texts, "--concurrency", in_flight, "--together",
            ]  # fmt: skip
            load = subprocess.Popen(
                list(map(str, command)), cwd=processes.ROOT, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            running.append(stack.enter_context(load))
            stack.callback(load.kill)  # before it is waited for
        for load in running:
            _ready(load)
        before, cpu = samples(server), server.cpu_seconds()
        figures = _together(running)
    after = samples(server)
    if sum(after[SHARED].values()):
        raise RuntimeError("the server answered texts without computing them: no texts may repeat")
    seconds = max(each["seconds"] for each in figures)
    return {
        "rate": round(loads * texts / seconds, 1),
        "p50_ms": round(statistics.median(each["p50"] for each in figures), 2),
        "p99_ms": round(max(each["p99"] for each in figures), 2),
        "client_busy": round(max(each["client_busy"] for each in figures), 2),
        "server_cores": round((server.cpu_seconds() - cpu) / seconds, 2),
        "device_busy": round((sum(after[BUSY].values()) - sum(before[BUSY].values())) / seconds, 2),
        "failures": sum(after[FAILURES].values()) - sum(before[FAILURES].values()),
        "on": where(server),
    }


def _ready(load: "subprocess.Popen[str]") -> None:
    """Wait until a load has warmed up."""
    assert load.stdout is not None
    if load.stdout.readline().strip() != "ready":
        raise RuntimeError("a load has failed: see above")


def _together(running: Sequence["subprocess.Popen[str]"]) -> list[dict[str, float]]:
    """Let loads begin that are ready; what they print."""
    for load in running:
        assert load.stdin is not None
        load.stdin.write("\n")
        load.stdin.flush()
    figures = []
    for load in running:
        assert load.stdout is not None
        figures.append(json.loads(load.stdout.read() or "null"))
        if load.wait() or figures[-1] is None:
            raise RuntimeError("a load has failed: see above")
    return figures
