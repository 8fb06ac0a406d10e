"""A closed-loop load generator, a process of its own: so many calls in flight, one text each; or one stream.

Prints one JSON object: texts per second, and the latencies' percentiles in milliseconds.
"""

import argparse
import asyncio
import json
import os
import time

import numpy as np

import trimtab
from bench import data


async def unary(url: str, texts: list[str], concurrency: int) -> list[float]:
    """One text a call; the latency of each call, in seconds."""
    latencies: list[float] = []
    queue = iter(texts)
    async with trimtab.AsyncClient(url, timeout=120) as client:

        async def worker() -> None:
            for text in queue:
                begun = time.perf_counter()
                await client.embed([text])
                latencies.append(time.perf_counter() - begun)

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return latencies


async def stream(url: str, texts: list[str]) -> None:
    """All texts over one stream of the SDK."""
    async with trimtab.AsyncClient(url, timeout=120) as client:
        count = 0
        async for _ in client.embed_stream(texts):
            count += 1
        if count != len(texts):
            raise SystemExit(f"{count} vectors for {len(texts)} texts")


def main() -> None:
    """Run one load."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--mix", required=True)
    parser.add_argument("--texts", type=int, required=True)
    parser.add_argument("--concurrency", type=int, help="calls in flight; left out: one stream")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    texts = data.mix(options.mix, options.texts)
    begun = time.perf_counter()
    if options.concurrency is None:
        asyncio.run(stream(options.url, texts))
        latencies = []
    else:
        latencies = asyncio.run(unary(options.url, texts, options.concurrency))
    rate = len(texts) / (time.perf_counter() - begun)
    percentiles = {f"p{p}": float(np.percentile(latencies, p)) * 1e3 for p in (50, 99)} if latencies else {}
    print(json.dumps({"rate": rate, **percentiles}))


if __name__ == "__main__":
    main()
