"""A real `trimtab serve` in a process of its own, on free ports; ready when it says so."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

READY = re.compile(r"trimtab serves .* on (\S+), metrics on (\S+);")
NAME = "all-minilm-l6-v2"


@dataclass
class ServerProcess:
    """A server that is ready. `url` is for gRPC, `metrics_url` for a scrape."""

    process: subprocess.Popen[str]
    url: str
    metrics_url: str
    log: list[str]

    def scrape(self) -> str:
        """What Prometheus would read."""
        with urllib.request.urlopen(self.metrics_url, timeout=60) as response:
            text: str = response.read().decode()
        return text

    def metrics(self) -> dict[str, float]:
        """One scrape: each sample by its name and labels, as Prometheus writes them."""
        pairs = (line.rsplit(" ", 1) for line in self.scrape().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def stop(self, timeout: float = 120) -> int:
        """SIGTERM, and wait for the end; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def serve(
    repository: Path, folder: Path, config: str = "", *arguments: str, under: Sequence[str] = ()
) -> Iterator[ServerProcess]:
    """Start a server and wait for its ready line; end it by its own process id.

    `under`: a command that becomes the one behind it, such as `nice`.
    """
    path = folder / "trimtab.toml"
    path.write_text(config)
    command = [*under, sys.executable, "-m", "trimtab.cli", "serve", "--repository", str(repository)]
    command += ["--config", str(path), *arguments]
    if "grpc_address" not in config:
        command += ["--grpc-address", "127.0.0.1:0"]
    if "metrics_address" not in config:
        command += ["--metrics-address", "127.0.0.1:0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    log: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    stderr = process.stderr
    reader = threading.Thread(target=lambda: log.extend(stderr), daemon=True)
    reader.start()
    killer = threading.Timer(240, process.kill)  # a server that never gets ready fails the test
    killer.start()
    try:
        match = READY.match(process.stdout.readline())
        killer.cancel()
        assert match, "the server did not get ready: " + "".join(log)
        yield ServerProcess(process, match[1], match[2], log)
    finally:
        killer.cancel()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join()
        process.stdout.close()
        stderr.close()
