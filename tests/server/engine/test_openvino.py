"""The runner for OpenVINO: beside ONNX Runtime over the same graph, and what it refuses."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from tests import hostile
from tests.server import openvino_made
from tests.server.models_made import ALONE, batch
from tests.server.models_made import model as made
from tests.texts import TEXTS
from trimtab.artifacts import openvino
from trimtab.artifacts.bundle import Bundle
from trimtab.errors import ConfigError
from trimtab.inputs.text import TextInput
from trimtab_server.catalog.encoder import model_of
from trimtab_server.engine.batch import HashedFile, Model
from trimtab_server.engine.fleet.homes import open_at
from trimtab_server.engine.fleet.places import Place
from trimtab_server.engine.runners import rehearsal
from trimtab_server.engine.runners.onnx import OnnxRunner
from trimtab_server.engine.runners.openvino import MOST_FAILED, OpenVinoRunner
from trimtab_server.engine.runners.runner import GraphError, Runner

SAME = 0.99999  # the least cosine of a text's vector alone and in a batch
NEAR = 0.9999  # of bfloat16 and float32
HAS_PRODUCTS = openvino.multiplies_bf16(openvino.core())
IDS = batch(np.array([2, 5, 6, 3], np.int32), np.array([2, 7, 3], np.int32))


@pytest.fixture(scope="module")
def bundle(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return openvino_made.bundle(minilm_repository, tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def texts(bundle: Bundle) -> list[np.ndarray]:
    """The ids of texts of many lengths, one of them long."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.file(bundle.manifest.tokenizer)))
    whole = [*TEXTS, " ".join(TEXTS)]
    return [np.array(each.ids[:256], np.int32) for each in tokenizer.encode_batch(whole)]


def graph_of(bundle: Bundle, number: int, *, with_states: bool = False, **changes: Any) -> Model:
    variant = bundle.manifest.variants[number]
    given = TextInput(variant.inputs)
    return replace(model_of(bundle, variant, given, with_states=with_states), **changes)


def dense(runner: Runner, texts: list[np.ndarray]) -> np.ndarray:
    return runner.run(batch(*texts), ALONE)["dense"].values


def least_cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


# -- a real encoder, in both runtimes --------------------------------------------------------------------


@pytest.mark.parametrize("with_states", [False, True])
def test_float32_is_the_same_in_both(bundle: Bundle, texts: list[np.ndarray], with_states: bool) -> None:
    model = graph_of(bundle, 0, with_states=with_states)
    theirs = OnnxRunner(model, "cpu").run(batch(*texts), model.names)
    ours = OpenVinoRunner(replace(model, runner="openvino"), "cpu").run(batch(*texts), model.names)
    assert ours.keys() == theirs.keys() and len(ours) == 1 + with_states
    for name, column in theirs.items():
        np.testing.assert_allclose(ours[name].values, column.values, atol=1e-5 * np.abs(column.values).max())


@pytest.mark.skipif(not HAS_PRODUCTS, reason="this processor has no products in bfloat16")
def test_bfloat16_is_near_and_no_more(bundle: Bundle, texts: list[np.ndarray]) -> None:
    expected = dense(OnnxRunner(graph_of(bundle, 0), "cpu"), texts)
    found = dense(OpenVinoRunner(graph_of(bundle, 1), "cpu"), texts)
    assert least_cosine(expected, found) > NEAR and np.abs(expected - found).max() > 1e-6


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def opened(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[OpenVinoRunner]:
    number = ["fp32", "bf16"].index(request.param)
    yield OpenVinoRunner(graph_of(bundle, number, runner="openvino"), "cpu", workers=2)


def test_a_vector_depends_on_its_text_alone(opened: OpenVinoRunner, texts: list[np.ndarray]) -> None:
    together = dense(opened, texts)
    alone = np.concatenate([dense(opened, [each]) for each in texts])
    assert least_cosine(together, alone) > SAME
    beside = np.concatenate([dense(opened, [each, texts[-1]])[:1] for each in texts])  # a long one
    assert least_cosine(alone, beside) > SAME
    turned = dense(opened, texts[::-1])[::-1]
    assert least_cosine(together, turned) > SAME
    np.testing.assert_array_equal(dense(opened, texts), together)


def test_runs_at_a_time_give_each_its_own(opened: OpenVinoRunner, texts: list[np.ndarray]) -> None:
    """What a run gave is not overwritten by the next one, nor by one beside it."""
    expected = [dense(opened, [each]) for each in texts]
    wrong: list[int] = []

    def ask(first: int) -> None:
        kept = [
            (number % len(texts), dense(opened, [texts[number % len(texts)]])) for number in range(first, 40)
        ]
        wrong.extend(number for number, found in kept if not np.array_equal(found, expected[number]))

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_rehearsed_is_what_runs(bundle: Bundle) -> None:
    steps: list[int] = []
    rehearsal.rehearse(rehearsal.GraphPiece(graph_of(bundle, 1), "cpu", 0), lambda: steps.append(1))
    assert len(steps) > 5


# -- how it is opened ------------------------------------------------------------------------------------


def test_runs_are_on_the_threads_of_the_workers(bundle: Bundle) -> None:
    """So they are on the workers' cores: other threads that OpenVINO starts compute nothing meanwhile."""

    def ticks() -> dict[str, int]:
        """The time that each thread has computed."""
        found = {}
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has just ended
                fields = (thread / "stat").read_text().rpartition(")")[2].split()
                found[thread.name] = int(fields[11]) + int(fields[12])
        return found

    here, before = os.sched_getaffinity(0), ticks()
    runner = open_at(graph_of(bundle, 1), Place("cpu", 0, workers=2, cores=tuple(sorted(here))[:1]))
    assert os.sched_getaffinity(0) == here, "this thread is bound while it opens the graph, and no longer"
    compiled, mine = ticks(), str(threading.get_native_id())
    while (now := ticks())[mine] < compiled[mine] + 20:
        dense(runner, [np.arange(1, 100, dtype=np.int32)] * 8)
    started = (compiled.keys() & now.keys()) - before.keys()
    assert started and all(now[thread] == compiled[thread] for thread in started)


def test_a_failed_run_harms_no_other(bundle: Bundle, texts: list[np.ndarray]) -> None:
    """OpenVINO itself would give the vectors of the run before, then and from then on."""
    opened = OpenVinoRunner(graph_of(bundle, 1), "cpu")
    expected = dense(opened, texts)
    dense(opened, [np.array([101, 102], np.int32)])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="computed nothing: an operator failed"):
            dense(opened, [np.full(600, 101, np.int32)])  # it has 512 positions
        assert opened._idle == []
        np.testing.assert_array_equal(dense(opened, texts), expected)
    assert len(opened._idle) == 1
    opened._failed = MOST_FAILED
    with pytest.raises(RuntimeError, match="was given up"):
        dense(opened, texts)


def test_a_run_that_hangs_holds_up_no_other(bundle: Bundle, texts: list[np.ndarray]) -> None:
    """Its worker is replaced, and gets a compiled graph of its own."""
    opened = OpenVinoRunner(graph_of(bundle, 1), "cpu")
    expected = dense(opened, texts)
    with opened._request():
        assert opened._idle == []
        np.testing.assert_array_equal(dense(opened, texts), expected)
    assert len(opened._idle) == 2


@pytest.mark.parametrize(
    ("precision", "products", "hint"),
    [("bf16", ["FP32", "BF16"], "bf16"), ("bf16", ["FP32"], "f32"), ("fp32", ["FP32", "BF16"], "f32")],
)
def test_products_are_as_the_bundle_says_where_the_processor_has_them(
    precision: Any, products: list[str], hint: str
) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return products

    told = openvino.settings(Core(), precision)
    assert told["INFERENCE_PRECISION_HINT"] == hint


def test_nothing_is_reported_over_the_network(bundle: Bundle) -> None:
    code = (
        "import sys\n"
        "from trimtab.artifacts import openvino\n"
        "openvino.core()\n"
        "print([name for name in sys.modules if 'telemetry' in name and sys.modules[name].__file__ and "
        "'openvino_telemetry' in sys.modules[name].__file__])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_openvino_the_extra_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino.core.cache_clear()
    with pytest.raises(ConfigError, match=r"variant bf16 of .* pip install 'trimtab\[openvino\]'"):
        open_at(graph_of(bundle, 1), Place("cpu", 0, workers=1))


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_no_gpu_is_used(bundle: Bundle, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"variant bf16 of .* not on device {kind}:1: leave it out of"):
        open_at(graph_of(bundle, 1), Place(kind, 1, workers=2))


# -- foreign graphs --------------------------------------------------------------------------------------


def foreign(folder: Path, graph: bytes) -> Model:
    (folder / "model.onnx").write_bytes(graph)
    found = HashedFile("model.onnx", len(graph), hostile.entry(folder, "model.onnx").sha256)
    given = TextInput(("input_ids", "attention_mask"), fewest=2, highest=len(hostile.TABLE) - 1)
    model = made(folder=folder, files=(found,), dimensions=hostile.DIMENSIONS, most=64, runner="openvino")
    return replace(model, input=given)


REFUSED = {
    "a loop": (hostile.looping(), "has the operator Loop, which OpenVINO cannot be stopped in"),
    "another domain": (hostile.unknown_node("com.microsoft"), "of com.microsoft, and OpenVINO is only given"),
    "no graph": (b"<net name='a' version='11'></net>", "it is no ONNX graph"),
    "random": (hostile.random(1.0), "a different vector each time"),
    "neighbours": (hostile.first_row_for_all(), "in another order"),
    "nan": (hostile.nan(), "values that are not finite"),
    "bool": (hostile.of_type(hostile.BOOL), r"tensor\(bool\)"),
    "float16": (hostile.of_type(TensorProto.FLOAT16), r"tensor\(float16\)"),
    "int64": (hostile.of_type(hostile.INT64), r"tensor\(int64\)"),
    "rank": (hostile.rank_three(), "1, 16"),
    "output": (hostile.encoder(name="logits"), "no output 'embeddings', but"),
    "sequence": (hostile.sequence(), "cannot be opened"),
    "rows": (hostile.one_row_more(), r"instead of float32 \(1, 16\)"),
    "memory": (hostile.huge(), "cannot be opened|takes more than"),
}


@pytest.mark.parametrize(("graph", "words"), REFUSED.values(), ids=REFUSED)
def test_a_foreign_graph_is_refused(tmp_path: Path, graph: bytes, words: str) -> None:
    with pytest.raises(GraphError, match=words):
        rehearsal.rehearse(rehearsal.GraphPiece(foreign(tmp_path, graph), "cpu", 0), lambda: None)
