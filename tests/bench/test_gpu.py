"""bench.gpu on a CPU: every part in a tiny form, and what keeps its figures honest."""

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from bench import data, processes
from bench.gpu import __main__ as program
from bench.gpu import devices, graphs, killed, latency, opened, padding, parity, table, workers
from bench.gpu.devices import CPU, Device, FellBackError, Row
from bench.gpu.graphs import Graphs
from bench.gpu.part import PARTS
from bench.gpu.run import Part, Run
from bench.gpu.sessions import Opened
from bench.report import HISTORY
from tests.export import tiny_encoders

CUDA = Device("cuda")
without_gpu = pytest.mark.skipif(
    CUDA.provider in ort.get_available_providers(), reason="this ONNX Runtime can use a GPU"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of sentence-transformers."""
    return tiny_encoders.sentence_transformers("bert", tmp_path_factory.mktemp("tiny"), max_seq_length=128)


@pytest.fixture(scope="module", autouse=True)
def texts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Texts of this module instead of fetched ones, also for processes that it starts."""
    path = tmp_path_factory.mktemp("texts") / "pairs.jsonl"
    rng = np.random.default_rng(3)
    words = ["server", "texts", "vector", "search", "encoder", "batch", "river", "music", "garden", "night"]

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(words, rng.integers(least, most)))

    pairs = [(f"{number} {text(3, 12)}", f"{number} {text(20, 60)}") for number in range(3000)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(data.OTHER_TEXTS, str(path))
        patch.setattr(data, "CACHE", path)
        yield path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, source: Path) -> tuple[Graphs, list[Row]]:
    """The graphs of the tiny encoder, and the rows that say so."""
    folder = Graphs(tmp_path_factory.mktemp("graphs"))
    return folder, list(graphs.make(folder, source))


@pytest.fixture
def run(made: tuple[Graphs, list[Row]]) -> Run:
    return Run(CPU, made[0], seconds=0.5, tiny=True)


def figures(rows: list[Row]) -> list[Row]:
    """The rows without a reason; each must say that it ran on the CPU."""
    found = [row for row in rows if "reason" not in row]
    assert all(devices.believed(row, CPU) is row for row in found)
    assert not any(devices.believed(row, CUDA) is row for row in found)
    return found


def test_the_graphs_differ_in_padding_and_precision(made: tuple[Graphs, list[Row]]) -> None:
    import onnx

    folder, rows = made
    assert [row["row"] for row in rows] == [*graphs.GRAPHS, "int8"]
    assert not [row for row in rows if "reason" in row]
    for name in (*graphs.GRAPHS, "int8"):
        nodes = onnx.load(str(folder.path(name)), load_external_data=False).graph.node
        assert any(node.op_type == "NonZero" for node in nodes) is not name.endswith("padded"), name
    for name in ("fp32", "fp16"):
        first, second = (
            {tensor.data_type for tensor in onnx.load(str(folder.path(each))).graph.initializer}
            for each in (name, f"{name} padded")
        )
        assert (onnx.TensorProto.FLOAT16 in first) is (onnx.TensorProto.FLOAT16 in second) is (name == "fp16")
    assert list(graphs.make(folder, Path("/nowhere"))), "what is there is kept"


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (opened.sessions, 6),
        (parity.parity, 4),
        (padding.padding, 8),
        (latency.latency, 2 * 2 * 3),
        (workers.workers, 4),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_part_on_a_cpu(run: Run, part: Part, expected: int) -> None:
    rows = list(part(run))
    assert len(figures(rows)) == expected, rows
    reasons = {row["reason"] for row in rows if "reason" in row}
    assert reasons <= {
        "a CPU has none",
        "RuntimeError: ONNX Runtime offers Python no pinned memory of CPUExecutionProvider",
    }


def test_parity_notices_other_vectors(run: Run, made: tuple[Graphs, list[Row]]) -> None:
    rows = {row["row"]: row for row in parity.parity(run)}
    assert rows["fp32"]["difference"] < 1e-5 and rows["fp32 padded"]["difference"] < 1e-5
    assert 1e-5 < rows["fp16"]["difference"] < 0.05
    assert all(row["cosine_min"] > 0.99 and row["batch_cosine_min"] > 0.999 for row in rows.values())
    ids = run.encoder.ids(data.mix("mixed", 8))
    wrong = Opened(made[0].path("fp32"), CPU).vectors(run.encoder, ids[::-1], 1)
    assert parity.compare(run, "fp32", {}, ids, wrong)["cosine_min"] < 0.99


def test_a_way_to_run_that_keeps_old_inputs_is_noticed(run: Run) -> None:
    def stale(run: Run, opened: Opened, feeds: Any) -> Any:
        return opened, lambda given: opened.run(feeds)

    def broken(run: Run, opened: Opened, feeds: Any) -> Any:
        return opened, lambda given: opened.run(given) * np.float32("nan")

    plain = Opened(run.graphs.path("fp32"), CPU)
    for way in (stale, broken):
        with pytest.raises(RuntimeError, match="other vectors"):
            latency.measured(run, plain, way, 2, 0.0)


@without_gpu
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_fell_back_gives_no_row(made: tuple[Graphs, list[Row]]) -> None:
    with pytest.raises(FellBackError, match="fell back from CUDAExecutionProvider to CPUExecutionProvider"):
        Opened(made[0].path("fp32"), CUDA)
    (first, *_) = parity.parity(Run(CUDA, made[0], seconds=0.1, tiny=True))
    assert first["reason"].startswith("FellBackError") and "difference" not in first


def test_threads_end_after_a_whole_pass(run: Run) -> None:
    batches = [run.encoder.ids(data.mix("short", size)) for size in (3, 5, 7)]
    threads = workers._Threads(run, Opened(run.graphs.path("fp32"), CPU), batches, 2)
    texts, _ = threads.work(0.0)
    assert texts == 3 + 5 + 7


def test_a_row_is_believed_only_if_it_shows_its_device() -> None:
    for on in ("CUDAExecutionProvider", "cuda:0", "TensorrtExecutionProvider"):
        row = {"row": "x", "rate": 1.0, "on": on}
        assert devices.believed(row, CUDA) == row
    for shown in ({}, {"on": "CPUExecutionProvider"}, {"on": "cpu"}, {"on": "cuda:0, cpu"}, {"on": ""}):
        assert set(devices.believed({"row": "x", "rate": 1.0, **shown}, CUDA)) == {"row", "reason"}
    kept = program.believed({"parity": [{"row": "x", "rate": 1.0, "on": "cpu"}]}, CUDA)
    assert "not on cuda:0" in kept["parity"][0]["reason"]
    assert "it ran on cpu" in table.table(kept)


def test_vectors_that_are_alike_are_left_out_where_swaps_must_be_noticed() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 0, 2, 1]]
    assert killed.apart(vectors + np.linspace(0, 0.01, 5, dtype=np.float32)[:, None]) == [0, 1, 3]


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", "", "tensorrt:0"])
def test_what_is_no_device_is_refused(name: str) -> None:
    done = _program("--device", name)
    assert done.returncode == 2 and "give cuda, cuda:1 or cpu" in done.stderr


@without_gpu
def test_without_a_gpu_it_says_so_and_keeps_nothing() -> None:
    history = HISTORY / "gpu.jsonl"
    before = history.read_text() if history.exists() else None
    done = _program()
    assert done.returncode == 1
    assert done.stderr.startswith("this machine has no CUDA device that ONNX Runtime can use: ONNX Runtime ")
    assert done.stderr.rstrip().endswith("run with --device cpu to see what it does")
    assert (history.read_text() if history.exists() else None) == before


def test_a_part_that_does_not_end_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the part: it writes a row, starts a process, and hangs, deaf to SIGTERM."""
    script = tmp_path / "hangs"
    script.write_text(
        "#!/bin/bash\ntrap '' TERM\n"
        'while [ "$1" != --rows ]; do shift; done\n'
        f'tail -f /dev/null & echo $! > {tmp_path}/pid; echo \'{{"row": "one", "on": "cpu"}}\' > "$2"\nwait\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(processes, "PYTHON", str(script))
    monkeypatch.setattr(program, "GRACE", 0.1)
    options = Namespace(device=CPU, folder=tmp_path, source=tmp_path, tiny=True)
    rows = program.run_part("parity", options, 1.0, 5.0, tmp_path / "rows")
    assert rows[0] == {"row": "one", "on": "cpu"}
    assert rows[1]["reason"] == "the part's process: no end after 5 s"
    stat = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        os.sched_yield()  # it has been killed, and ends


def test_a_part_that_crashes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "crashes"
    script.write_text(f"#!/bin/bash\nkill -{signal.SIGSEGV.value} $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(processes, "PYTHON", str(script))
    options = Namespace(device=CPU, folder=tmp_path, source=tmp_path, tiny=True)
    (row,) = program.run_part("parity", options, 1.0, 20.0, tmp_path / "rows")
    assert row["reason"] == f"the part's process: signal {signal.SIGSEGV.value}"


def test_everything_that_serves_runs_from_the_command(made: tuple[Graphs, list[Row]], source: Path) -> None:
    history = HISTORY / "gpu.jsonl"
    before = history.read_text() if history.exists() else None
    parts, folder = ("served", "front-ends", "int8", "killed", "tensorrt"), made[0].folder
    done = _program("--device", "cpu", "--source", str(source), "--folder", str(folder), "--parts", *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = (json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines())
    assert (history.read_text() if history.exists() else None) == before
    assert record["seen"]["device"] == "cpu" and record["seen"]["onnxruntime"]["version"] == ort.__version__
    rows = record["parts"]
    for name, number in {"served": 8, "front-ends": 2, "int8": 1, "killed": 2}.items():
        assert len(figures(rows[name])) == len(rows[name]) == number, rows[name]
    assert all(row["rate"] > 0 and row["failures"] == 0 for row in rows["front-ends"])
    kill, calls = rows["killed"]
    assert kill["pause_s"] > 0
    assert calls["sent"] == calls["answered"] > 200
    assert calls["lost"] == calls["wrong"] == calls["errors"] == 0
    assert rows["tensorrt"][0]["reason"].startswith("ONNX Runtime has no Tensorrt")
    for name in parts:
        assert f"\n{name}: {PARTS[name].what}" in done.stdout


def _program(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *options],
        cwd=processes.ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
