"""The images are not built here; but what they install is enough to serve, and there is no torch in it."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trimtab_server.engine import configured

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
EXTRAS = {"cpu": ["server", "openvino", "auth", "otel"], "gpu": ["gpu", "auth", "otel"]}

# Imports what `trimtab serve` and `trimtab embed` import, with nothing but the distributions named.
IMPORTS = """
import sys
from importlib import metadata
allowed = set(sys.argv[1].split(","))
class Guard:
    def find_spec(self, name, path=None, target=None):
        owners = packages.get(name.partition(".")[0])
        if owners and not owners & allowed:
            raise ModuleNotFoundError(f"the image has no {name}")
packages = {name: {each.lower().replace("_", "-") for each in owners}
            for name, owners in metadata.packages_distributions().items()}
sys.meta_path.insert(0, Guard())
import trimtab.sdk.client, trimtab.cli, trimtab_server.app, trimtab_server.cli, jwt.algorithms
import opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.grpc.trace_exporter
assert jwt.algorithms.has_crypto
trimtab.cli.find_commands()
"""


def installed(extras: list[str]) -> set[str]:
    """Every distribution that `pip install trimtab[extras]` brings, by what they themselves declare."""
    todo, found = [("trimtab", extra) for extra in extras], {"trimtab"}
    seen = set()
    while todo:
        name, which = todo.pop()
        if (name, which) in seen:
            continue
        seen.add((name, which))
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            found.add(name)  # onnxruntime-gpu, beside which onnxruntime could not be installed
            continue
        found.add(name)
        for each in map(Requirement, requires):
            if each.marker is None or each.marker.evaluate({"extra": which}):
                todo += [(canonicalize_name(each.name), extra) for extra in each.extras or {""}]
    return found


@pytest.mark.parametrize("image", EXTRAS)
def test_an_image_installs_the_server_without_torch(image: str) -> None:
    text = (DOCKER / f"{image}.Dockerfile").read_text()
    assert re.findall(r"'\.\[([\w,]+)\]'", text) == [",".join(EXTRAS[image])]
    assert "USER 10001" in text and "-c constraints.txt" in text
    brought = installed(EXTRAS[image])
    assert not brought & {"torch", "transformers", "optimum", "sentence-transformers", "onnx"}
    assert len(brought & {"onnxruntime", "onnxruntime-gpu"}) == 1
    # What the image is built from reaches the builder.
    let_through = (ROOT / ".dockerignore").read_text().split()
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert f"!{name}" in let_through and (ROOT / name).exists()


def test_the_extras_are_enough_to_serve() -> None:
    command = [sys.executable, "-c", IMPORTS, ",".join(installed(EXTRAS["cpu"]))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    without = installed(EXTRAS["cpu"]) - {"onnxruntime"}
    done = subprocess.run([*command[:3], ",".join(without)], capture_output=True, text=True, timeout=240)
    assert "the image has no onnxruntime" in done.stderr


def test_a_user_without_a_home_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the image's user is, where the runtime gives it none."""

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert configured._folder("~/.cache") is None
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configured._folder("~/.cache") == tmp_path / ".cache"


def test_nothing_is_left_in_the_home_and_nobody_is_told(minilm_repository: Path, tmp_path: Path) -> None:
    """ONNX Runtime would leave an id and a queue of reports there, for a connection to its makers."""
    graph = next(minilm_repository.glob("*/1/fp32/model.onnx"))
    imports = "import trimtab_server.engine.runners.onnx, onnxruntime"
    code = f"{imports}; onnxruntime.InferenceSession({str(graph)!r})"
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
