"""Processes of the benchmarks: servers, each on a core; programs that print JSON; CPU time; the machine."""

import contextlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "bench" / ".logs"
PYTHON = sys.executable
READY = re.compile(r"trimtab serves .* on (\S+), metrics on (\S+);")


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the server under test, another for the load."""

    server: int
    client: int


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready: its addresses, and its process, which leads its own session."""

    pid: int
    url: str
    metrics_url: str = ""

    def cpu_seconds(self) -> float:
        """User and system CPU time of the server and its live child processes."""
        return sum(self.cpu_by_process().values())

    def cpu_by_process(self) -> dict[int, float]:
        """The same, by process id."""
        return _session(self.pid)


Serving: TypeAlias = contextlib.AbstractContextManager[Running]


def cores() -> Cores:
    """Two cores of this machine; SystemExit if there is only one."""
    available = sorted(os.sched_getaffinity(0))
    if len(available) < 2:
        raise SystemExit("this needs two cores: one for the server, one for the load")
    return Cores(available[0], available[1])


def program(module: str, *arguments: object) -> dict[str, Any]:
    """Run one of the benchmark's programs and read the JSON that it prints."""
    command = [PYTHON, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=900)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextlib.contextmanager
def serve(
    name: str,
    command: Sequence[str],
    cores: int | Sequence[int],
    ready: Callable[[str], tuple[str, str] | None],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    seconds: float = 180,
) -> Iterator[Running]:
    """Start a server on one or more cores; stop it and its children on exit.

    `ready` gets the server's output so far, and returns its addresses (calls, metrics) once it is ready. The
    output is kept in bench/.logs/NAME.log.
    """
    LOGS.mkdir(exist_ok=True)
    log = LOGS / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, [cores] if isinstance(cores, int) else cores)), *command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own group, so that its children can be ended with it
        )
    try:
        until = time.monotonic() + seconds
        while (addresses := ready(log.read_text(errors="replace"))) is None:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{name} did not start: see {log.relative_to(ROOT)}")
            time.sleep(0.1)
        yield Running(process.pid, *addresses)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        until = time.monotonic() + 10
        while _session(process.pid) and time.monotonic() < until:
            time.sleep(0.1)  # time for its children to clean up
        for pid in _session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _session(leader: int) -> dict[int, float]:
    """The processes of the session that `leader` leads, and the CPU seconds of each."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            # After the name, which may contain anything: state ppid pgrp session ... utime stime
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                ticks = int(fields[11]) + int(fields[12])
                found[int(path.parent.name)] = ticks / os.sysconf("SC_CLK_TCK")
    return found


def trimtab(repository: Path, *cores: int, device: str = "auto") -> Serving:
    """Our server with its default configuration, except that it measures its costs anew."""
    LOGS.mkdir(exist_ok=True)
    config = LOGS / "trimtab.toml"
    config.write_text(f'devices = ["{device}"]\n[engine]\ncosts = ""\n')
    command = [PYTHON, "-m", "trimtab.cli", "serve", "--repository", str(repository), "--config", str(config)]
    command += ["--grpc-address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    return serve("trimtab", command, cores, said_ready)


def said_ready(log: str) -> tuple[str, str] | None:
    """The addresses in the line that our server prints when it is ready."""
    match = READY.search(log)
    return (match[1], match[2]) if match else None


def free_ports(count: int) -> list[int]:
    """Free ports on the loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def counters(server: Running) -> dict[str, float]:
    """The server's counters of what a load cost, each summed over its labels.

    Tokens requested, tokens that devices computed (including padding), and texts answered without being
    computed.
    """
    sums = dict.fromkeys(
        ("trimtab_tokens_total", "trimtab_batch_tokens_sum", "trimtab_shared_texts_total"), 0.0
    )
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        for line in response.read().decode().splitlines():
            name = line.partition("{")[0]
            if name in sums:
                sums[name] += float(line.rpartition(" ")[2])
    return sums


def machine() -> str:
    """The processor's name, and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
