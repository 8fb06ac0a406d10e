"""What Trimtab does on an NVIDIA GPU: run this on a machine that has one, and paste what it prints.

    python -m bench.gpu                              everything on the first GPU, in ten minutes
    python -m bench.gpu --parts padding latency      some parts
    python -m bench.gpu --device cpu                 what it does, on a machine without a GPU

It needs `pip install -e '.[gpu,export,demo]'` with CUDA and cuDNN as ONNX Runtime wants them, and no network.
It makes the graphs of all-MiniLM-L6-v2 first, in bench/.data/gpu, where the next run finds them. Each part
runs in a process of its own; one that fails, or takes too long, says so, and the others go on.

{parts}

The figures are printed as tables, and kept in bench/history/gpu.jsonl, with what was seen of the device. A
figure is kept only if its session got the GPU's provider, and runs never fall back to the CPU; a server's
only if its metrics say that the GPU was busy. On a CPU there are few texts and small batches (--no-tiny: as
many as on a GPU), and the figures are kept beside the graphs. The texts are Debian's package descriptions
where an earlier benchmark has fetched them, else docstrings of the installed packages.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import data, encoders, processes
from bench.gpu import devices, texts
from bench.gpu.devices import Device, Row
from bench.gpu.part import MAKING, PARTS
from bench.gpu.table import table
from bench.report import HISTORY, append

FOLDER = processes.ROOT / "bench" / ".data" / "gpu"
MAKING_SHARE = 12  # percent of the time, beside the parts
PATIENCE = 3.0  # a part may take so many times its share, if there is time
GRACE = 30.0  # seconds to end its servers in


def run_part(name: str, options: argparse.Namespace, seconds: float, most: float, rows: Path) -> list[Row]:
    """A part's rows. A part that ends otherwise than by itself gets a row that says so."""
    command = [
        processes.PYTHON, "-m", "bench.gpu.part", name, "--device", str(options.device), "--folder",
        str(options.folder), "--source", str(options.source), "--rows", str(rows),
        "--seconds", f"{seconds:.1f}",
    ]  # fmt: skip
    rows.unlink(missing_ok=True)
    part = subprocess.Popen([*command, *(["--tiny"] if options.tiny else [])], cwd=processes.ROOT)
    try:
        status = part.wait(most)
        ended = f"signal {-status}" if status < 0 else f"status {status}" if status else ""
    except subprocess.TimeoutExpired:
        ended = f"no end after {most:.0f} s"
    finally:
        end(part)
    # The last line may be cut off.
    lines = rows.read_text().rpartition("\n")[0].splitlines() if rows.exists() else []
    found = [json.loads(line) for line in lines]
    return [*found, {"row": "the rest", "reason": f"the part's process: {ended}"}] if ended else found


def end(part: "subprocess.Popen[bytes]") -> None:
    """End a part that has not ended, and whatever it has started."""
    if part.poll() is not None:
        return
    started = descendants(part.pid)
    part.send_signal(signal.SIGTERM)
    try:
        part.wait(GRACE)
    except subprocess.TimeoutExpired:
        part.kill()
        part.wait()
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(ancestor: int) -> list[int]:
    """The processes that a process has started, and that these have started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [ancestor]
    for each in found:  # grows meanwhile
        found += [pid for pid, parent in parents.items() if parent == each]
    return found[1:]


def run(options: argparse.Namespace, parts: Sequence[str]) -> dict[str, list[Row]]:
    """All parts, within the time. None begins when it is over."""
    until = time.monotonic() + 60 * options.minutes
    shares = {name: MAKING_SHARE if name == MAKING else PARTS[name].share for name in parts}
    found: dict[str, list[Row]] = {}
    for name in parts:
        left = until - time.monotonic()
        seconds = left * shares[name] / sum(shares[each] for each in parts if each not in found)
        print(f"{name}: about {max(0, seconds):.0f} of {max(0, left):.0f} s", flush=True)
        if left <= 0:
            found[name] = [{"row": "all", "reason": "the time was over: give more --minutes"}]
            continue
        most = min(left, max(PATIENCE * seconds, left if name == MAKING else 0.0))
        rows = options.folder / f"rows-{os.getpid()}.jsonl"
        found[name] = run_part(name, options, seconds, most, rows)
        rows.unlink(missing_ok=True)
    return found


def believed(found: Mapping[str, Sequence[Row]], device: Device) -> dict[str, list[Row]]:
    """The rows, without the figures of those that do not show that they were made on the device."""
    return {
        name: [row if name == MAKING else devices.believed(row, device) for row in rows]
        for name, rows in found.items()
    }


def main() -> None:
    """Run the parts, print the tables, keep the figures."""
    options = _options()
    if why := devices.refusal(options.device):
        sys.exit(
            f"this machine has no CUDA device that ONNX Runtime can use: {why}; run with --device cpu to see "
            "what it does"
        )
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.source = options.source or encoders.source(encoders.L6)
    os.environ[data.OTHER_TEXTS], kind = texts.chosen(options.folder)
    begun, seen = time.monotonic(), devices.seen(options.device)
    print(json.dumps(seen, indent=1))
    print(f"texts: {kind}", flush=True)
    found = believed(run(options, (MAKING, *options.parts)), options.device)
    print(table(found))
    folder = HISTORY if options.device.kind != "cpu" else options.folder
    append(
        "gpu", folder=folder, seen=seen, texts=kind, tiny=options.tiny,
        seconds=round(time.monotonic() - begun), parts=found,
    )  # fmt: skip


def _options() -> argparse.Namespace:
    listed = "\n".join(f"{name:<12}{known.what}" for name, known in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=(__doc__ or "").format(parts=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device", type=devices.parse, default="cuda", help="cuda, cuda:1 or cpu (default: %(default)s)"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="only these parts"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="for everything, also making the graphs (default: 10)"
    )
    parser.add_argument(
        "--tiny",
        action=argparse.BooleanOptionalAction,
        help="few texts and small batches (default: on a CPU)",
    )
    parser.add_argument(
        "--source", type=Path, help="another encoder: a sentence-transformers folder; with its own --folder"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=FOLDER,
        help="where graphs are made, and kept for the next run; remove it after a change of the exporter",
    )
    options = parser.parse_args()
    if options.source and options.folder == FOLDER:
        parser.error("--source needs a --folder of its own: the default one has another encoder's graphs")
    if options.tiny is None:
        options.tiny = options.device.kind == "cpu"
    return options


if __name__ == "__main__":
    main()
