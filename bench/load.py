"""The load generator, run as its own process. Prints one JSON object: rates, latencies, its own lag.

Closed loop: --concurrency calls in flight, one text each; each answer starts the next call.
Open loop:   --rate texts a second, Poisson, or --trace FILE, whatever the server does meanwhile; each line of
             FILE is "seconds<TAB>text".

Latency counts from when a text was *due*, not from when it was sent, so a stalling server cannot hide the
calls that it delayed. Lag is how late the generator itself was.

With --together, it prints "ready" after its warm-up, and begins when it reads a line from its standard input:
so several loads can begin at the same time.

Every text must be answered once, with a unit vector of the right width; otherwise the run fails.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import numpy as np

import trimtab
from bench import data
from bench.load_clients import KINDS, TIMEOUT, UNARY, Call, LoadTarget
from bench.load_record import LoadRecord
from trimtab.core.exchange import DEFAULT_WINDOW

WARM_UP = 32  # calls before the clock starts


def poisson(texts: Sequence[str], rate: float, seed: int = 0) -> list[tuple[float, str]]:
    """When each text is due, in seconds from the start: independent arrivals, `rate` a second."""
    rng = random.Random(seed)
    due, arrivals = 0.0, []
    for text in texts:
        due += rng.expovariate(rate)
        arrivals.append((due, text))
    return arrivals


def trace(path: Path, texts: int) -> list[tuple[float, str]]:
    """The first arrivals of a recorded file: lines of seconds, a tab, and the text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.partition("\t") for line in lines if line]
    return sorted((float(due), text) for due, _, text in rows)[:texts]


async def closed(call: Call, texts: Sequence[str], concurrency: int) -> LoadRecord:
    """A fixed number of calls in flight, until every text is answered."""
    record, queue = LoadRecord(len(texts)), iter(enumerate(texts))

    async def worker() -> None:
        for row, text in queue:
            record.send(row)
            record.answer(row, await call(text))

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return record


async def opened(call: Call, arrivals: Sequence[tuple[float, str]]) -> LoadRecord:
    """Send each text when it is due, however many are in flight."""
    record = LoadRecord(len(arrivals))

    async def one(row: int, due: float, text: str) -> None:
        record.send(row, due)
        record.answer(row, await call(text))

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for row, (offset, text) in enumerate(arrivals):
            await _until(begun + offset)
            tasks.create_task(one(row, begun + offset, text))
    return record


async def streamed(target: LoadTarget, texts: Sequence[str], window: int | None) -> LoadRecord:
    """All texts over one stream of the SDK, which reads `window` texts ahead (None: its default)."""
    record = LoadRecord(len(texts))

    def source() -> Iterator[str]:
        for row, text in enumerate(texts):
            record.send(row)
            yield text

    window = DEFAULT_WINDOW if window is None else window
    async with trimtab.AsyncClient(target.url, timeout=TIMEOUT) as client:
        row = 0
        async for vector in client.embed_stream(source(), window=window, **target.asked):
            record.answer(row, vector)
            row += 1
    return record


async def streamed_when_due(target: LoadTarget, arrivals: Sequence[tuple[float, str]]) -> LoadRecord:
    """Send each text over one stream of the SDK when it is due."""
    record = LoadRecord(len(arrivals))
    begun = time.perf_counter()

    async def source() -> AsyncIterator[str]:
        for row, (offset, text) in enumerate(arrivals):
            await _until(begun + offset)
            record.send(row, begun + offset)
            yield text

    async with trimtab.AsyncClient(target.url, timeout=TIMEOUT) as client:
        row = 0
        async for vector in client.embed_stream(source()):
            record.answer(row, vector)
            row += 1
    return record


@asynccontextmanager
async def feeding(target: LoadTarget, documents: Sequence[str], width: int) -> AsyncIterator[None]:
    """Feed documents as bulk work through one stream of the SDK; the block starts once the rate is steady."""
    if len(documents) < 2 * DEFAULT_WINDOW:
        raise SystemExit("too few documents: the same one would be in flight twice, but computed once")
    steady = asyncio.Event()

    async def feed() -> None:
        async with trimtab.AsyncClient(target.url, timeout=TIMEOUT) as client:
            count = 0
            async for vector in client.embed_stream(cycle(documents), priority="bulk"):
                if vector.shape != (width,) or abs(float(np.linalg.norm(vector)) - 1) > 1e-3:
                    raise SystemExit("the feed got something that is not a unit vector")
                count += 1
                if count == DEFAULT_WINDOW:
                    steady.set()

    task = asyncio.create_task(feed())
    ready = asyncio.create_task(steady.wait())
    await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT)
    if not ready.done():
        raise SystemExit("the feed did not start")
    try:
        yield
        if task.done():
            raise SystemExit("the feed ended early")
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def _until(due: float) -> None:
    left = due - time.perf_counter()
    if left > 0:
        await asyncio.sleep(left)


async def run(options: argparse.Namespace) -> dict[str, float]:
    """One load, as the command line describes it."""
    target = LoadTarget(options.url, options.encoder, options.variant)
    texts = data.mix(options.mix, options.texts, options.skip)
    arrivals = None
    if options.trace is not None:
        arrivals = trace(options.trace, options.texts)
    elif options.rate is not None:
        arrivals = poisson(texts, options.rate)
    if options.kind == "stream":
        await streamed(target, texts[:WARM_UP], None)
        await _all_ready(options.together)
        began = time.process_time()
        if arrivals is None:
            record = await streamed(target, texts, options.concurrency)
        else:
            record = await streamed_when_due(target, arrivals)
        return _figures(record, options.width, time.process_time() - began)
    async with UNARY[options.kind](target) as call:
        await closed(call, texts[:WARM_UP], min(options.concurrency or 8, WARM_UP))
        await _all_ready(options.together)
        if options.feed and arrivals is not None:
            documents = data.mix("long", options.feed)
            async with feeding(target, documents, options.width):
                answered = _answered_texts(options.metrics_url)
                began, begun = time.process_time(), time.perf_counter()
                record = await opened(call, arrivals)
                spent, seconds = time.process_time() - began, time.perf_counter() - begun
                answered = _answered_texts(options.metrics_url) - answered
            fed = (answered - record.texts) / seconds
            return {**_figures(record, options.width, spent), "feed_rate": fed}
        began = time.process_time()
        if arrivals is None:
            record = await closed(call, texts, options.concurrency)
        else:
            record = await opened(call, arrivals)
        return _figures(record, options.width, time.process_time() - began)


async def _all_ready(together: bool) -> None:
    if together:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)


def _answered_texts(metrics_url: str) -> float:
    """How many texts the server has answered. The stream's own vectors arrive in order, so in bursts."""
    with urllib.request.urlopen(metrics_url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("trimtab_texts_total"))


def _figures(record: LoadRecord, width: int, cpu_seconds: float) -> dict[str, float]:
    record.vectors(width)
    figures = record.figures()
    return {**figures, "client_busy": cpu_seconds / figures["seconds"]}


def main() -> None:
    """Run one load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="HOST:PORT of gRPC; http://HOST:PORT for --kind http")
    parser.add_argument("--kind", choices=KINDS, default="sdk", help="the client (default: sdk)")
    parser.add_argument("--encoder", default="all-minilm-l6-v2", help="for triton and http")
    parser.add_argument("--variant", default="", help="for sdk and stream, closed loop: a variant's name")
    parser.add_argument("--width", type=int, default=384, help="dimensions that a vector must have")
    parser.add_argument("--core", type=int, required=True, help="the core to run on")
    parser.add_argument("--mix", choices=data.MIXES, default="short", help="lengths of the texts")
    parser.add_argument("--texts", type=int, required=True, help="the maximum number of texts")
    parser.add_argument("--skip", type=int, default=0, help="how many texts to leave to other loads")
    parser.add_argument("--together", action="store_true", help="begin with other loads: see above")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--concurrency", type=int, help="closed loop: calls in flight; a stream's window")
    loop.add_argument("--rate", type=float, help="open loop: texts a second, Poisson")
    loop.add_argument("--trace", type=Path, help="open loop: a recorded file")
    parser.add_argument(
        "--feed",
        type=int,
        default=0,
        metavar="DOCUMENTS",
        help="with an open loop: feed so many documents repeatedly in one stream; reports feed_rate",
    )
    parser.add_argument("--metrics-url", help="for --feed: the server's metrics, which count its answers")
    options = parser.parse_args()
    if options.feed and not (options.metrics_url and (options.rate or options.trace)):
        parser.error("--feed needs --metrics-url, and --rate or --trace")
    if options.kind != "stream" and not (options.concurrency or options.rate or options.trace):
        parser.error("one of --concurrency, --rate and --trace is needed")
    os.sched_setaffinity(0, {options.core})
    print(json.dumps(asyncio.run(run(options))))


if __name__ == "__main__":
    main()
