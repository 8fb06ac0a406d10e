"""How many one-text calls a second an engine's process takes from front ends, and its CPU time for each.

    python -m bench.engine_port models
    python -m bench.engine_port models --front-ends 8 --in-flight 128 --run-milliseconds 3

The engine's process has a core of its own, and one simulated device, whose runs sleep as a thread that waits
for a GPU does. On another core, this process stands for the front ends: it has as many connections as they
would, and sends what they would send for calls of one short text, without gRPC and tokenizers.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import time
from pathlib import Path

import numpy as np

from bench import processes, report
from bench.fake_server import FAKES
from trimtab.artifacts import bundle as bundles
from trimtab.inputs.text import TextInput
from trimtab_server import config
from trimtab_server.catalog.encoder import model_of
from trimtab_server.config import Config
from trimtab_server.engine.batch import Model, Payload
from trimtab_server.engine.port import AdmissionRequest, ComputeRequest, Turn
from trimtab_server.engine.remote.remote import RemoteEngine
from trimtab_server.processes.child import Begin, Child

# Tokens of a short text, from all-MiniLM-L6-v2's tokenizer.
TOKENS = 12


def payload(number: int) -> Payload:
    """A short text, unlike all others."""
    ids = np.arange(number, number + TOKENS, dtype=np.int32)
    return Payload({"ids": ids}, TOKENS, ids.tobytes())


async def calls(front: RemoteEngine, model: int, column: str, numbers: range, in_flight: int) -> None:
    """Calls of one text, as Embed makes them, so many at a time."""
    turn, left = Turn("", "a connection", "interactive", None), iter(numbers)

    async def caller() -> None:
        for number in left:
            admitted = await front.admit(AdmissionRequest(model, turn, TOKENS, 16))
            work = ComputeRequest(admitted, model, turn, [payload(number)], (column,))
            computed = await front.compute(work)
            if len(computed.result[column]) != 1:
                raise RuntimeError("an answer has another number of rows than its request")
            front.release(admitted, answered=True)

    await asyncio.gather(*(caller() for _ in range(in_flight)))


async def measure(model: Model, options: argparse.Namespace) -> list[dict[str, float]]:
    """Rates, and the engine's microseconds of CPU time per text: one row a round."""
    cores, rows = processes.cores(), []
    os.environ[FAKES] = f"1 0 {options.run_milliseconds / 1e3}"
    os.environ["PYTHONPATH"] = str(processes.ROOT)
    engine = Child("engine", {})
    os.sched_setaffinity(0, {cores.server})  # which the engine's process inherits
    await engine.start("bench.fake_server")
    os.sched_setaffinity(0, {cores.client})
    await engine.ask("begin", Begin("engine", config.encode(Config(devices=("cpu",))), False))
    fronts, numbers = [RemoteEngine() for _ in range(options.front_ends)], []
    for front in fronts:
        one, other = socket.socketpair()
        engine.send(one)
        await front.connect(other)
        numbers.append(await front.load(model))
    each, column = options.texts // len(fronts), model.names[0]
    for round_ in range(options.rounds + 1):  # the first to warm up
        before, begun = _cpu(engine.pid), time.perf_counter()
        own = time.process_time()
        await asyncio.gather(
            *(
                calls(
                    front,
                    number,
                    column,
                    range(start := (round_ * 64 + place) * each, start + each),
                    options.in_flight,
                )
                for place, (front, number) in enumerate(zip(fronts, numbers, strict=True))
            )
        )
        seconds, texts = time.perf_counter() - begun, each * len(fronts)
        rows.append(
            {
                "rate": round(texts / seconds),
                "engine_us": round((_cpu(engine.pid) - before) / texts * 1e6, 1),
                "front_us": round((time.process_time() - own) / texts * 1e6, 1),
            }
        )
    for front in fronts:
        await front.close()
    await engine.ask("stop")
    await engine.ended()
    return rows[1:]


def _cpu(pid: int) -> float:
    """Seconds of CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, print, append to the history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path)
    parser.add_argument("--front-ends", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=64, help="for each front end")
    parser.add_argument("--texts", type=int, default=60_000, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run-milliseconds", type=float, default=2.0)
    options = parser.parse_args()
    bundle = bundles.read(next(options.repository.resolve().glob("*/*/manifest.json")).parent, verify=False)
    rows = asyncio.run(measure(model_of(bundle, bundle.manifest.variants[0], TextInput()), options))
    for row in rows:
        print(json.dumps(row))
    print(f"{statistics.median(row['engine_us'] for row in rows):.1f} us of the engine's CPU time a text")
    given = {
        name: getattr(options, name) for name in ("front_ends", "in_flight", "texts", "run_milliseconds")
    }
    report.append("engine_port", **given, rounds=rows)


if __name__ == "__main__":
    main()
