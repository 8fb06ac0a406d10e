"""Whether graphs open and run on the device: each provider's nodes, memory, the time of first runs."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime as ort

from bench import data
from bench.gpu.devices import Device, Row, proved
from bench.gpu.graphs import GRAPHS, NAME
from bench.gpu.run import Run
from bench.gpu.sessions import Opened, milliseconds, timed, tried
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import tensorrt
from trimtab.inputs.text import TextInput
from trimtab.kinds import Precision
from trimtab.values.column import stacked
from trimtab_server.catalog.encoder import model_of
from trimtab_server.engine.runners.onnx import PROVIDERS, OnnxRunner

BATCH = 8
WIDE = 64  # texts of the batch that memory is measured with


def sessions(run: Run) -> Iterator[Row]:
    """A row for each graph, and one for the bundle as the server opens it."""
    for name in (*GRAPHS, "int8"):
        yield tried({"row": name}, partial(_opened, run, name))
    yield tried({"row": "the server's runner"}, partial(_runner, run))


def _opened(run: Run, name: str) -> Row:
    before = run.device.memory_mib()
    opened = Opened(run.graphs.path(name), run.device)
    figures = _measured(run, opened)
    after = run.device.memory_mib()
    taken = None if before is None or after is None else round(after - before, 1)
    return {**figures, "taken_mib": taken, "on": proved(opened.session, run.device)}


def _measured(run: Run, opened: Opened) -> Row:
    """Nodes by provider; the time of opening, of a first run, of a first run of another shape, of more."""
    ids = run.encoder.ids(data.mix("short", BATCH))
    wide = run.encoder.ids(data.mix("mixed", BATCH if run.tiny else WIDE))
    first, second = run.encoder.feeds(ids), run.encoder.feeds(wide)
    seconds = []
    for feeds in (first, second):
        begun = time.perf_counter()
        opened.run(feeds)
        seconds.append(time.perf_counter() - begun)
    nodes = opened.nodes()
    own = nodes.pop(opened.device.provider, 0)
    times = timed(lambda: opened.run(first), run.seconds / 20)
    return {
        "open_s": round(opened.seconds, 3),
        "first_ms": round(seconds[0] * 1e3, 1),
        "other_shape_ms": round(seconds[1] * 1e3, 1),
        **milliseconds(times),
        "nodes": own,
        "elsewhere": sum(nodes.values()),
    }


def _runner(run: Run) -> Row:
    """The bundle through the code that the server opens and runs it with, which refuses another provider."""
    bundle = bundles.read(run.graphs.bundle)
    variant = bundle.manifest.variants[0]
    given = TextInput(variant.inputs, pad_id=bundle.manifest.pad_id)
    model = model_of(bundle, variant, given)
    begun = time.perf_counter()
    runner = OnnxRunner(model, run.device.kind, run.device.index)
    seconds = time.perf_counter() - begun
    ids = stacked(run.encoder.ids(data.mix("short", BATCH)))
    times = timed(lambda: runner.run({"ids": ids}, model.names), run.seconds / 20)
    return {"open_s": round(seconds, 3), **milliseconds(times), "on": run.device.provider}


def engines(run: Run) -> Iterator[Row]:
    """TensorRT, if ONNX Runtime has it: with the options that the server gives it, engines built anew."""
    provider = PROVIDERS["tensorrt"][0]
    if provider not in ort.get_available_providers():
        yield {"row": NAME, "reason": f"ONNX Runtime has no {provider} here"}
        return
    for name in sorted(GRAPHS, key=lambda name: not name.endswith("padded")):  # the likelier ones first
        yield tried({"row": name}, partial(_engine, run, name))


def _engine(run: Run, name: str) -> Row:
    device = Device("tensorrt", run.device.index)
    graph, manifest = run.graphs.path(name), run.encoder.manifest
    precision: Precision = "fp16" if name.startswith("fp16") else "fp32"
    with TemporaryDirectory() as folder:
        inputs = manifest.variants[0].inputs
        options = tensorrt.options(inputs, manifest.max_tokens, precision, Path(folder), device.index)
        opened = Opened(graph, device, options)
        return {**_measured(run, opened), "on": proved(opened.session, device)}
