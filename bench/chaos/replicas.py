"""Server processes to inject faults into: killed, paused, stopped, restarted at the same address."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench import processes

READY_SECONDS = 90.0
# From Debian's package faketime: shifts the clock of a process, controlled by a file.
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@dataclass
class Replica:
    """`trimtab serve` on a port that it keeps across restarts."""

    name: str
    folder: Path
    repository: Path
    config: str
    shifted: bool = False  # whether its clock can be shifted
    under: Sequence[str] = ()  # a command that becomes the server, such as `taskset -c 0`
    front_ends: int = 1
    port: int = 0
    metrics_url: str = ""
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        self.port = self.port or processes.free_ports(1)[0]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clock = self.folder / "clock"

    @property
    def url(self) -> str:
        """The address where it listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The pid of the current process."""
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        """The output of all its processes so far."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("log-*")))

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        assert self.process is None or self.process.poll() is not None
        self.starts += 1
        config, log = self.folder / "trimtab.toml", self.folder / f"log-{self.starts:04}"
        config.write_text(self.config.replace("[server]", f"[server]\nfrontends = {self.front_ends}", 1))
        command = [*self.under, processes.PYTHON, "-m", "trimtab.cli", "serve"]
        command += ["--repository", str(self.repository)]
        command += ["--config", str(config), "--grpc-address", self.url, "--metrics-address", "127.0.0.1:0"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=processes.ROOT, stdout=output, stderr=output, env=self._environment()
            )
        until = time.monotonic() + READY_SECONDS
        while (said := processes.said_ready(log.read_text(errors="replace"))) is None:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.name} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        self.metrics_url = said[1]

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if self.shifted:
            self.clock.write_text("+0\n")
            environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_DONT_RESET": "1",
            }
        return environment

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process; those that pause or resume, to its front ends and engine, too."""
        os.kill(self.pid, number)
        if self.front_ends > 1 and number in (signal.SIGSTOP, signal.SIGCONT):
            for child in self.children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)

    def end(self, seconds: float = 60) -> int:
        """Send SIGTERM, and wait. Returns the exit status."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Send SIGKILL: the server loses everything it holds."""
        assert self.process is not None
        for child in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def children(self) -> list[int]:
        """Its live child processes, whichever thread started them: those of devices, or its front ends and
        their engine."""
        threads = Path("/proc", str(self.pid), "task").glob("*")
        return [
            int(pid) for each in threads for pid in _read(self.pid, "task", each.name, "children").split()
        ]

    def limit_files(self, size: int | None) -> None:
        """Stop its files from growing beyond this many bytes, as on a full disk; None: no limit."""
        limit = resource.RLIM_INFINITY if size is None else size
        for pid in (self.pid, *(self.children() if self.front_ends > 1 else ())):
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, hard))

    def resident(self) -> int:
        """Resident bytes of it and its children."""
        return sum(_status(pid, "VmRSS") for pid in (self.pid, *self.children()))

    def peak(self) -> int:
        """Peak resident bytes of its process since its start; and of its front ends and engine, if it has
        several."""
        others = self.children() if self.front_ends > 1 else ()
        return sum(_status(pid, "VmHWM") for pid in (self.pid, *others))


@contextlib.contextmanager
def running(*replicas: Replica) -> Iterator[None]:
    """Start the replicas; stop those left at the end."""
    try:
        for replica in replicas:
            replica.start()
        yield
    finally:
        for replica in replicas:
            if replica.process is not None and replica.process.poll() is None:
                replica.signal(signal.SIGCONT)
                replica.process.terminate()
        for replica in replicas:
            if replica.process is not None:
                try:
                    replica.process.wait(40)
                except subprocess.TimeoutExpired:
                    replica.kill()


def address(*replicas: Replica) -> str:
    """A gRPC target with the addresses of all of them."""
    return "ipv4:" + ",".join(replica.url for replica in replicas)


def copy_of(bundle: Path, repository: Path, name: str = "", version: int = 1) -> Path:
    """Add the bundle to a repository again, as another version or under another name, by one rename."""
    import json

    name = name or bundle.parent.name
    stage, target = repository / f".stage-{name}-{version}", repository / name / str(version)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(bundle, stage)
    manifest = json.loads((stage / "manifest.json").read_text())
    (stage / "manifest.json").write_text(json.dumps(manifest | {"name": name, "version": version}))
    stage.rename(target)
    return target


def reload(replica: Replica, name: str, *, unload: bool = False) -> None:
    """Load an encoder again, with the repository's calls; `unload`: unload it first."""
    with grpc.insecure_channel(replica.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        if unload:
            stub.RepositoryModelUnload(
                service_pb2.RepositoryModelUnloadRequest(model_name=name), timeout=30, wait_for_ready=True
            )
        stub.RepositoryModelLoad(
            service_pb2.RepositoryModelLoadRequest(model_name=name), timeout=30, wait_for_ready=True
        )


def serving(replica: Replica) -> bool:
    """Whether a server reports that it is ready."""
    with grpc.insecure_channel(replica.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=10, wait_for_ready=True).ready)


def _status(pid: int, field: str) -> int:
    for line in _read(pid, "status").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(pid: int, *path: str) -> str:
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), *path).read_text()
    return ""
