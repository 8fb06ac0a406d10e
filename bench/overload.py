"""Goodput under overload: how much is answered in time at several times the capacity.

    python -m bench.overload                texts of documents, each call with a deadline of a second

The capacity is what the server answers when calls are always waiting. Then calls arrive at random, at a
multiple of that rate, whatever happens to earlier ones; an answer counts if it arrives before its deadline.
The server computes on one core; it shares the other, where it reads and refuses calls, with the load. So the
load's own cost is told apart: `client_busy` is the share of a core that it used, `server_busy` the same of
the server on both cores, and `lag_p99` how late it sent, in milliseconds.
"""

import argparse
import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc

from bench import data, processes
from bench.processes import Running
from bench.report import append
from trimtab.v1 import encoder_pb2 as pb

TIMES = (0.5, 1.0, 2.0, 5.0, 10.0)
CLOSED = 32


async def capacity(method: Any, texts: list[str]) -> float:
    """Texts per second with calls always waiting."""
    waiting = iter(texts)

    async def worker() -> None:
        for text in waiting:
            await method(_request(text))

    begun = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(CLOSED)))
    return len(texts) / (time.perf_counter() - begun)


async def offered(method: Any, texts: list[str], rate: float, deadline: float) -> dict[str, float]:
    """Calls arriving at this rate: those answered in time per second, and what happened to the others."""
    rng, codes, latencies, lags = random.Random(0), Counter[str](), [], []

    async def one(text: str) -> None:
        begun = time.perf_counter()
        try:
            await method(_request(text), timeout=deadline)
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1
        else:
            codes["OK"] += 1
            latencies.append(time.perf_counter() - begun)

    cpu, begun, due = time.process_time(), time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as tasks:
        for text in texts:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
            lags.append(time.perf_counter() - begun - due)
            tasks.create_task(one(text))
    latencies.sort()
    lags.sort()
    return {
        "offered": len(texts) / due,
        "goodput": codes["OK"] / due,
        "client_busy": (time.process_time() - cpu) / (time.perf_counter() - begun),
        "lag_p99": 1e3 * lags[int(0.99 * len(lags))],
        "p99": 1e3 * latencies[int(0.99 * len(latencies))] if latencies else float("nan"),
        **{f"{name.lower()}_share": count / len(texts) for name, count in sorted(codes.items())},
    }


async def run(server: Running, mix: str, seconds: float, deadline: float) -> dict[str, dict[str, float]]:
    """All loads, against one server."""
    texts = data.mix(mix, 30_000)
    # Refusals are what is measured, so gRPC must not retry them.
    async with grpc.aio.insecure_channel(server.url, [("grpc.enable_retries", 0)]) as channel:
        method: Any = channel.unary_unary("/trimtab.v1.EncoderService/Embed")
        await capacity(method, texts[:100])
        most = await capacity(method, texts[: max(200, int(seconds * 30))])
        rows = {"capacity": {"goodput": most}}
        for times in TIMES:
            count = min(int(times * most * seconds), len(texts))
            cpu, begun = server.cpu_seconds(), time.perf_counter()
            row = rows[f"{times:g} times"] = await offered(method, texts[:count], times * most, deadline)
            row["server_busy"] = (server.cpu_seconds() - cpu) / (time.perf_counter() - begun)
    return rows


def _request(text: str) -> bytes:
    return pb.EmbedRequest(texts=[text]).SerializeToString()


def main() -> None:
    """Measure, print, append to the history."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, default=processes.ROOT / "models")
    parser.add_argument("--mix", choices=data.MIXES, default="long", help="lengths of the texts")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--deadline", type=float, default=1.0, help="of each call, in seconds")
    options = parser.parse_args()
    cores = processes.cores()
    with processes.trimtab(
        options.repository.resolve(), cores.server, cores.client, device=f"cpu:{cores.server}"
    ) as server:
        available = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cores.client})
        rows = asyncio.run(run(server, options.mix, options.seconds, options.deadline))
        os.sched_setaffinity(0, available)  # a record tells how many cores there are
    peak = max(row["goodput"] for row in rows.values())
    for name, row in rows.items():
        row["of_peak"] = row["goodput"] / peak
        print(f"{name:10}", "  ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    append("overload", mix=options.mix, deadline=options.deadline, results=rows)


if __name__ == "__main__":
    main()
