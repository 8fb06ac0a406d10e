"""Other servers with the same weights, each in its own environment, set up on first use in bench/.peers.

triton    Triton's core with a Python model (nvidia-pytriton), batched dynamically; gRPC
infinity  Infinity (infinity-emb) with its ONNX engine; HTTP
"""

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.processes import ROOT, Serving
from trimtab.artifacts import bundle as bundles

HERE = Path(__file__).parent
FOLDER = ROOT / "bench" / ".peers"
# Infinity's default, used for Triton too: larger batches gain throughput but lose it to padding.
MAX_BATCH = 32


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare with. `serve` starts it on a core; `kind` is the load generator's client for it."""

    name: str
    kind: str
    serve: Callable[[int], Serving]
    versions: dict[str, str]


def set_up(name: str, bundle: Path, source: Path) -> Peer:
    """Install a peer if missing, with the weights of `source`, which `bundle` was exported from.

    Raises RuntimeError, with the end of pip's output, if that fails.
    """
    return {"triton": _triton, "infinity": _infinity}[name](bundle, source)


NAMES = ("triton", "infinity")


def _triton(bundle: Path, _source: Path) -> Peer:
    # Triton's stub for Python models is linked to the distribution's own Python.
    python = _environment("triton", "/usr/bin/python3")
    read = bundles.read(bundle)
    manifest = read.manifest

    def serve(core: int) -> Serving:
        grpc_port, http_port = processes.free_ports(2)
        command = [
            str(python), str(HERE / "triton_server.py"), manifest.name,
            str(read.file(manifest.variants[0].files[0])), str(read.file(manifest.tokenizer)),
            "--max-tokens", str(manifest.max_tokens), "--width", str(manifest.dimensions),
            "--max-batch", str(MAX_BATCH), "--grpc-port", str(grpc_port), "--http-port", str(http_port),
        ]  # fmt: skip
        health = f"http://127.0.0.1:{http_port}/v2/models/{manifest.name}/ready"
        ready = _answers(health, f"127.0.0.1:{grpc_port}")
        return processes.serve("triton", command, core, ready, env=_ONE_THREAD)

    return Peer("triton", "triton", serve, _versions(python, "nvidia-pytriton", "onnxruntime", "tokenizers"))


def _infinity(bundle: Path, source: Path) -> Peer:
    python = _environment("infinity", sys.executable)
    folder = FOLDER / "infinity"
    name = bundles.read(bundle).manifest.name
    if not (folder / "model").exists():
        partial = folder / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        # Exported in our environment: Infinity's own exporter does not work with its torch.
        command = [
            str(Path(sys.executable).with_name("optimum-cli")),
            "export",
            "onnx",
            "--model",
            str(partial),
        ]
        command += ["--task", "feature-extraction", "--library-name", "transformers", str(partial)]
        _run("infinity: export", command)
        partial.rename(folder / "model")

    def serve(core: int) -> Serving:
        (port,) = processes.free_ports(1)
        command = [
            str(python), str(HERE / "infinity_server.py"), "v2", "--engine", "optimum", "--device", "cpu",
            "--model-id", ".",  # any other path it would join to itself
            "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port),
            "--batch-size", str(MAX_BATCH), "--no-vector-disk-cache", "--pooling-method", "mean",
            "--log-level", "warning",
        ]  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        environment = {
            **_ONE_THREAD,
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        }
        ready = _answers(f"{url}/health", url)
        return processes.serve("infinity", command, core, ready, cwd=folder / "model", env=environment)

    return Peer(
        "infinity", "http", serve, _versions(python, "infinity_emb", "optimum", "onnxruntime", "transformers")
    )


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _answers(health: str, url: str) -> Callable[[str], tuple[str, str] | None]:
    def ready(_log: str) -> tuple[str, str] | None:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return url, ""
        except (OSError, urllib.error.URLError):
            return None

    return ready


def _environment(name: str, python: str) -> Path:
    """The Python of a peer's environment, which is rebuilt whenever its requirements change."""
    folder, requirements = FOLDER / name, HERE / f"{name}.txt"
    installed = folder / "installed.txt"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        print(f"setting up {name} in {folder.relative_to(ROOT)} (minutes)", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run(f"{name}: venv", [python, "-m", "venv", str(folder / "venv")])
        pip = [str(folder / "venv/bin/pip"), "install", "-q", "--disable-pip-version-check"]
        # torch first and alone: pip then takes exactly the named build, not gigabytes of CUDA.
        for line in requirements.read_text().splitlines():
            if line.startswith("torch=="):
                _run(f"{name}: torch", [*pip, line])
        _run(f"{name}: pip", [*pip, "-r", str(requirements)])
        shutil.copy(requirements, installed)
    return folder / "venv/bin/python"


def _run(step: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{step}: {error}") from None
    if done.returncode:
        raise RuntimeError(f"{step}: {done.stderr.strip()[-400:]}")


def _versions(python: Path, *names: str) -> dict[str, str]:
    code = "import json, sys; from importlib import metadata as m; "
    code += "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions
