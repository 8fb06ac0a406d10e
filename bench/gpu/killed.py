"""A device whose graphs run in a process of their own, which is killed under load."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import trimtab
from bench import data
from bench.gpu import serving
from bench.gpu.devices import Device, Row
from bench.gpu.run import Run
from bench.gpu.sessions import Vectors
from bench.processes import Running

TEXTS, TINY = 512, 64
CLIENTS, IN_FLIGHT = 4, 32  # connections; calls of one text
KILLS, TINY_KILLS = 2, 1
BETWEEN = 200  # answers between two kills, so that the next does not look like a process that keeps ending
PROGRAM = "trimtab_server.engine.runners.child"
# The same text in another batch is nearer than this, and every other text farther.
NEAR = 0.02
TIMEOUT = 120.0


@dataclass(slots=True)
class _Answers:
    """What came back, and when."""

    expected: Vectors
    counts: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    over: bool = False

    def take(self, number: int, vector: Any) -> None:
        """An answer to the text of this number: right, or another's."""
        self.times.append(time.monotonic())
        self.counts["answered"] += 1
        off = float(np.abs(vector - self.expected[number]).max())
        self.counts["wrong"] += not off < NEAR


def killed(run: Run) -> Iterator[Row]:
    """A row for each kill of the device's process, while calls are in flight."""
    with serving.server(run, "killed", isolation="process") as server:
        yield from asyncio.run(_killed(run, server))


async def _killed(run: Run, server: Running) -> list[Row]:
    texts = data.mix("short", TINY if run.tiny else TEXTS)
    async with trimtab.AsyncClient(server.url, timeout=TIMEOUT) as client:
        vectors = np.concatenate([await client.embed([text]) for text in texts])
    kept = apart(vectors)
    texts = [texts[place] for place in kept]
    answers, rows = _Answers(vectors[kept]), []
    numbers = cycle(range(len(texts)))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(_call(server.url, texts, numbers, answers))
        for number in range(TINY_KILLS if run.tiny else KILLS):
            rows.append({"row": f"kill {number + 1}", **await _kill(run, server, answers)})
        answers.over = True
    # A call without an answer is among the errors, or still waits; the group has waited for all of them.
    lost = answers.counts["sent"] - answers.counts["answered"] - answers.counts["errors"]
    total = {name: answers.counts[name] for name in ("sent", "answered", "wrong", "errors")}
    on = serving.where(server)
    return [{**row, "on": on} for row in [*rows, {"row": "all calls", **total, "lost": lost}]]


def apart(vectors: Vectors) -> list[int]:
    """The places of vectors that are so far from each other that a swapped answer is noticed."""
    kept: list[int] = []
    for place, vector in enumerate(vectors):
        if not kept or np.abs(vectors[kept] - vector).max(axis=1).min() > 2 * NEAR:
            kept.append(place)
    return kept


async def _call(url: str, texts: list[str], numbers: Iterator[int], answers: _Answers) -> None:
    async with trimtab.AsyncClient(url, timeout=TIMEOUT) as client, asyncio.TaskGroup() as tasks:

        async def caller() -> None:
            while not answers.over:
                number = next(numbers)
                answers.counts["sent"] += 1
                try:
                    answers.take(number, (await client.embed([texts[number]]))[0])
                except trimtab.TrimtabError:
                    answers.counts["errors"] += 1

        for _ in range(IN_FLIGHT // CLIENTS):
            tasks.create_task(caller())


async def _kill(run: Run, server: Running, answers: _Answers) -> Row:
    """Kill the process once calls flow, and wait until they flow again. RuntimeError if it was not restarted
    once."""
    await _more(answers, BETWEEN)
    restarts = _restarts(server)
    pid, before = device_process(server, run.device), len(answers.times)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    # Answers that were computed before the kill may still arrive: more than all in flight have not been.
    await _more(answers, 2 * IN_FLIGHT)
    restarts = _restarts(server) - restarts
    if restarts != 1 or device_process(server, run.device) == pid:
        raise RuntimeError(
            f"the device's process was killed once, and the server counts {restarts:g} restarts"
        )
    times = np.array([killed, *answers.times[before:]])
    return {
        "pause_s": round(float(np.diff(times).max()), 3),
        "wrong": answers.counts["wrong"],
        "errors": answers.counts["errors"],
    }


def _restarts(server: Running) -> float:
    return sum(serving.samples(server)[serving.RESTARTS].values())


async def _more(answers: _Answers, count: int) -> None:
    """Wait for so many more answers, or calls that fail."""

    def ended() -> int:
        return answers.counts["answered"] + answers.counts["errors"]

    enough = ended() + count
    async with asyncio.timeout(TIMEOUT):
        while ended() < enough:  # noqa: ASYNC110 - a look now and then costs the load less than an event
            await asyncio.sleep(0.01)


def device_process(server: Running, device: Device) -> int:
    """The process of the server's device. Rehearsals have one of the same program, with another name."""
    for pid in server.cpu_by_process():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if PROGRAM in words and f"device {device}" in words:
            return pid
    raise RuntimeError("the server has no process for its device")
