"""How long a small batch takes: a plain run against bound buffers, pinned memory and CUDA graphs."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort

from bench import data
from bench.gpu.devices import Row, proved
from bench.gpu.graphs import GRAPHS
from bench.gpu.run import Run
from bench.gpu.sessions import OUTPUT, Feeds, Opened, Vectors, milliseconds, timed, tried

BATCHES, TINY = (1, 8, 32), (1, 8)
CAPTURED = "CUDA graph"
LENGTH = 16  # tokens of every text, padding included
# Another way to call the same graph must give the same vectors, up to other kernels for another shape.
TOLERANCE = 2e-2
Way: TypeAlias = Callable[[Feeds], Vectors]
# Given a session of the graph, and a batch of the shape that will be run; with the session that it uses.
MakeWay: TypeAlias = Callable[[Run, Opened, Feeds], tuple[Opened, Way]]


def latency(run: Run) -> Iterator[Row]:
    """A row for each graph, size of batch and way to run it; the output is always copied to the CPU.

    CUDA graphs come last: a capture that fails may leave the GPU's context in this process unusable.
    """
    sizes = TINY if run.tiny else BATCHES
    graphs = GRAPHS[:2] if run.tiny else GRAPHS
    cells = sorted(product(graphs, sizes, WAYS), key=lambda cell: cell[2] == CAPTURED)
    seconds = 0.6 * run.seconds / len(cells)
    plain: dict[str, Opened] = {}
    for name, size, way in cells:
        row = {"row": name, "batch": size, "way": way}
        if reason := _pointless(run, name, way):
            yield {**row, "reason": reason}
        else:
            yield tried(row, partial(_measured, run, plain, name, WAYS[way], size, seconds))


def _pointless(run: Run, name: str, way: str) -> str:
    if way == CAPTURED and not run.on_gpu:
        return "a CPU has none"
    if way == CAPTURED and not name.endswith("padded"):
        return "the number of real tokens decides its shapes, and a CUDA graph has fixed ones"
    return ""


def _measured(run: Run, plain: dict[str, Opened], name: str, make: MakeWay, size: int, seconds: float) -> Row:
    if name not in plain:
        plain[name] = Opened(run.graphs.path(name), run.device)
    return measured(run, plain[name], make, size, seconds)


def measured(run: Run, plain: Opened, make: MakeWay, size: int, seconds: float) -> Row:
    """The time of a way, if it gives the right vectors of two batches in turns: a stale buffer would not."""
    texts = run.encoder.ids(data.mix("short", 2 * size))
    cut = [each[:LENGTH] for each in texts]
    one, other = (run.encoder.feeds(part, LENGTH) for part in (cut[:size], cut[size:]))
    expected = [plain.run(feeds) for feeds in (one, other)]
    opened, act = make(run, plain, one)
    pairs = list(zip((one, other), expected, strict=True))
    difference = float(np.max([np.abs(act(feeds) - right) for _ in range(3) for feeds, right in pairs]))
    if not difference <= TOLERANCE:  # NaN counts as a difference
        raise RuntimeError(f"this way gives other vectors than a plain run: by {difference:.2g}")
    times = timed(lambda: act(one), seconds)
    return {**milliseconds(times), "difference": difference, "on": proved(opened.session, run.device)}


def _plain(run: Run, opened: Opened, feeds: Feeds) -> tuple[Opened, Way]:
    return opened, opened.run


def _bound(run: Run, opened: Opened, feeds: Feeds) -> tuple[Opened, Way]:
    """Inputs from the CPU's memory, bound anew each time; the output stays on the device, and is copied."""
    binding = opened.session.io_binding()

    def act(given: Feeds) -> Vectors:
        for name in opened.names:
            binding.bind_cpu_input(name, given[name])
        binding.bind_output(OUTPUT, *_where(run))
        opened.session.run_with_iobinding(binding)
        vectors: Vectors = binding.copy_outputs_to_cpu()[0]
        return vectors

    return opened, act


def _in_place(run: Run, opened: Opened, feeds: Feeds) -> tuple[Opened, Way]:
    """Buffers on the device that are made once; what is in them is replaced."""
    kind, index = _where(run)
    return _replaced(run, opened, feeds, device_type=kind, device_id=index)


def _pinned(run: Run, opened: Opened, feeds: Feeds) -> tuple[Opened, Way]:
    """Buffers in the CPU's memory, in pages that the GPU reads and writes by itself."""
    return _replaced(run, opened, feeds, memory_info=_host_memory(run))


def _replaced(run: Run, opened: Opened, feeds: Feeds, **where: Any) -> tuple[Opened, Way]:
    """Buffers for this shape, made once; the output's content is copied, since the next run replaces it."""

    def buffer(shape: tuple[int, ...], dtype: Any) -> Any:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, **where)

    binding = opened.session.io_binding()
    given = {name: buffer(feeds[name].shape, np.int64) for name in opened.names}
    output = buffer((len(feeds["input_ids"]), run.encoder.manifest.dimensions), np.float32)
    for name, value in given.items():
        value.update_inplace(feeds[name])
        binding.bind_ortvalue_input(name, value)
    binding.bind_ortvalue_output(OUTPUT, output)

    def act(now: Feeds) -> Vectors:
        for name, value in given.items():
            value.update_inplace(now[name])
        opened.session.run_with_iobinding(binding)
        vectors: Vectors = np.array(output.numpy())
        return vectors

    return opened, act


def _host_memory(run: Run) -> Any:
    """The pinned memory of the device, if this ONNX Runtime offers any to Python."""
    kinds = ort.OrtDeviceMemoryType
    for each in ort.get_ep_devices():
        if each.ep_name == run.device.provider:
            found = each.memory_info(kinds.HOST_ACCESSIBLE)
            if found is not None:
                return found
    raise RuntimeError(f"ONNX Runtime offers Python no pinned memory of {run.device.provider}")


def _captured(run: Run, opened: Opened, feeds: Feeds) -> tuple[Opened, Way]:
    """In place, in a session for this shape alone: all kernels are captured once, and start in one call."""
    axes, shape = opened.session.get_inputs()[0].shape, feeds["input_ids"].shape
    sizes = {name: size for name, size in zip(axes, shape, strict=True) if isinstance(name, str)}
    fixed = Opened(opened.graph, run.device, {"enable_cuda_graph": "1"}, sizes)
    kind, index = _where(run)
    return _replaced(run, fixed, feeds, device_type=kind, device_id=index)


def _where(run: Run) -> tuple[str, int]:
    """The device, as bindings name it."""
    return run.device.kind, run.device.index


WAYS: dict[str, MakeWay] = {
    "run": _plain,
    "bound": _bound,
    "in place": _in_place,
    "pinned": _pinned,
    CAPTURED: _captured,
}
