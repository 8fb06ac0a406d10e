"""One part, in a process of its own: a crash, a hanging run or memory that is not given back ends with it.

    python -m bench.gpu.part parity --device cuda --folder FOLDER --rows FILE --seconds 30

Appends each row to FILE as soon as it is there, as a line of JSON.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from bench.gpu import devices, graphs, killed, latency, opened, padding, parity, served, workers
from bench.gpu.devices import Row
from bench.gpu.graphs import Graphs
from bench.gpu.run import Part, Run
from bench.gpu.sessions import reason


class Known(NamedTuple):
    """A part, its share of the time in percent, and what it shows."""

    part: Part
    share: int
    what: str


PARTS = {
    "sessions": Known(opened.sessions, 6, "do the graphs open and run there: nodes, memory, first runs"),
    "parity": Known(parity.parity, 6, "float32 and float16 against the CPU's float32; alone and in batches"),
    "padding": Known(padding.padding, 14, "the graph without padding against the one with it, by shape"),
    "latency": Known(latency.latency, 10, "small batches: bound buffers, pinned memory, CUDA graphs"),
    "workers": Known(workers.workers, 6, "one, two and three threads on one session"),
    "served": Known(served.served, 18, "trimtab serve against a bare loop, one text a call and in streams"),
    "front-ends": Known(served.front_ends, 16, "one text a call, with 1, 4 and 8 front ends"),
    "int8": Known(served.int8, 6, "a variant in static int8, served there"),
    "killed": Known(killed.killed, 8, "the device's process is killed under load"),
    "tensorrt": Known(opened.engines, 10, "TensorRT, if ONNX Runtime has it; building engines takes minutes"),
}
MAKING = "graphs"


def rows(name: str, run: Run, source: Path) -> Iterator[Row]:
    """The rows of a part."""
    if name == MAKING:
        yield from graphs.make(run.graphs, source)
    else:
        yield from PARTS[name].part(run)


def write(path: Path, found: Iterator[Row]) -> None:
    """Append rows as they come. A part that fails as a whole ends with a row that says why."""
    with path.open("a") as file:

        def put(row: Row) -> None:
            file.write(json.dumps(row, default=_plain) + "\n")
            file.flush()
            print(f"  {line(row)}", flush=True)

        try:
            for row in found:
                put(row)
        except Exception as error:
            put({"row": "the rest", "reason": reason(error)})


def line(row: Row) -> str:
    """A row, for people who wait."""
    named = ("row", "batch", "way", "threads", "loads", "in_flight")
    rest = (f"{name} {row[name]}" for name in named[1:] if name in row)
    title = " ".join((str(row["row"]), *rest))
    figures = ", ".join(f"{name} {shown(value)}" for name, value in row.items() if name not in (*named, "on"))
    return f"{title}: {figures}"


def shown(value: Any) -> str:
    """A figure in a table."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item()


def main() -> None:
    """Run a part. SIGTERM ends it, with the servers that it has started."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=(MAKING, *PARTS))
    parser.add_argument("--device", type=devices.parse, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--source", type=Path, default=Path())
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    run = Run(options.device, Graphs(options.folder), options.seconds, options.tiny)
    write(options.rows, rows(options.part, run, options.source))


if __name__ == "__main__":
    main()
