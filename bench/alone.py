"""The latency of a single call: how much longer a unary call takes than the bare session on the same text.

Nothing else is in flight. Call and session alternate, text by text: server and session on one core, the
client on another. Prints one JSON object of medians, in milliseconds.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import trimtab
from bench import data
from bench.limit import Bare
from bench.processes import Cores

WARM_UP = 10


def measure(
    call: Callable[[str], trimtab.Embeddings], bundle: Path, cores: Cores, calls: int
) -> dict[str, float]:
    """Medians over `calls` short texts."""
    texts = data.mix("short", WARM_UP + calls)
    with ThreadPoolExecutor(1, initializer=lambda: os.sched_setaffinity(0, {cores.server})) as beside:
        bare = beside.submit(Bare, bundle).result()
        ids = bare.tokenize(texts)

        def session(row: int) -> float:
            begun = time.perf_counter()
            bare.run([ids[row]])
            return time.perf_counter() - begun

        called, ran, computed = [], [], []
        for row, text in enumerate(texts):
            ran.append(beside.submit(session, row).result())
            begun = time.perf_counter()
            embeddings = call(text)
            called.append(time.perf_counter() - begun)
            computed.append(embeddings.times.compute)
    called, ran, computed = called[WARM_UP:], ran[WARM_UP:], computed[WARM_UP:]
    p50, bare_p50 = statistics.median(called) * 1e3, statistics.median(ran) * 1e3
    each = statistics.median(a - b for a, b in zip(called, ran, strict=True)) * 1e3
    around = statistics.median(a - b for a, b in zip(called, computed, strict=True)) * 1e3
    return {"call": p50, "session": bare_p50, "added": p50 - bare_p50, "added_each": each, "around": around}


def main() -> None:
    """Measure one client."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--client", choices=("sync", "async"), required=True)
    parser.add_argument("--server-core", type=int, required=True)
    parser.add_argument("--client-core", type=int, required=True)
    parser.add_argument("--calls", type=int, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.client_core})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cores = Cores(options.server_core, options.client_core)

    def with_call(call: Callable[[str], trimtab.Embeddings]) -> dict[str, float]:
        return measure(call, options.bundle, cores, options.calls)

    if options.client == "sync":
        with trimtab.Client(options.url) as client:
            figures = with_call(lambda text: client.embed_detailed([text]))
    else:
        with asyncio.Runner() as runner:

            async def connect() -> trimtab.AsyncClient:
                return trimtab.AsyncClient(options.url)

            async_client = runner.run(connect())
            # The loop runs only during a call; its iterations count, as they would in a program.
            loop = runner.get_loop()
            figures = with_call(lambda text: loop.run_until_complete(async_client.embed_detailed([text])))
            runner.run(async_client.close())
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
