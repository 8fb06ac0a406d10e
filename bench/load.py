"""The load generator, run as its own process. Prints one JSON object: rates, latencies, its own lag.

Closed loop: --concurrency calls in flight, one text each; each answer starts the next call.
Open loop:   --rate texts a second, Poisson, or --trace FILE, whatever the server does meanwhile; each line of
             FILE is "seconds<TAB>text".

Latency counts from when a text was *due*, not from when it was sent, so a stalling server cannot hide the
calls that it delayed. Lag is how late the generator itself was.

Every text must be answered once, with a unit vector of the right width; otherwise the run fails.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

import trimtab
from bench import data
from trimtab.core.exchange import DEFAULT_WINDOW
from trimtab.v1 import encoder_pb2 as pb

TIMEOUT = 120.0
WARM_UP = 32  # calls before the clock starts
Call = Callable[[str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Target:
    """The server under load."""

    url: str
    encoder: str


@asynccontextmanager
async def sdk(target: Target) -> AsyncIterator[Call]:
    """trimtab.AsyncClient, one call per text."""
    async with trimtab.AsyncClient(target.url, timeout=TIMEOUT) as client:

        async def call(text: str) -> Any:
            return (await client.embed([text]))[0]

        yield call


@asynccontextmanager
async def triton(target: Target) -> AsyncIterator[Call]:
    """NVIDIA's tritonclient.grpc.aio, one call per text: for our server and for Triton."""
    import tritonclient.grpc.aio as tritonclient

    async with tritonclient.InferenceServerClient(target.url) as client:

        async def call(text: str) -> Any:
            tensor = tritonclient.InferInput("text", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=object))
            result = await client.infer(target.encoder, [tensor], client_timeout=TIMEOUT)
            return result.as_numpy("embeddings")[0]

        yield call


@asynccontextmanager
async def raw(target: Target) -> AsyncIterator[Call]:
    """Bare gRPC; answers are parsed after the clock has stopped: the least possible work for the client."""
    async with grpc.aio.insecure_channel(target.url) as channel:
        method: Any = channel.unary_unary("/trimtab.v1.EncoderService/Embed")

        async def call(text: str) -> Any:
            return await method(pb.EmbedRequest(texts=[text]).SerializeToString(), timeout=TIMEOUT)

        yield call


@asynccontextmanager
async def http(target: Target) -> AsyncIterator[Call]:
    """OpenAI's HTTP API with vectors as base64, as Infinity speaks it."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def call(text: str) -> Any:
            body = {"model": target.encoder, "input": [text], "encoding_format": "base64"}
            async with session.post(f"{target.url}/embeddings", json=body) as response:
                response.raise_for_status()
                encoded = (await response.json())["data"][0]["embedding"]
            return np.frombuffer(base64.b64decode(encoded), "<f4")

        yield call


UNARY: dict[str, Callable[[Target], AbstractAsyncContextManager[Call]]] = {
    "sdk": sdk,
    "triton": triton,
    "raw": raw,
    "http": http,
}
KINDS = (*UNARY, "stream")


@dataclass(slots=True)
class Record:
    """What happened to each text: when it was due, sent and answered, and with what."""

    texts: int
    due: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.due, self.sent, self.answered = ([0.0] * self.texts for _ in range(3))
        self.answers = [None] * self.texts

    def send(self, row: int, due: float | None = None) -> None:
        """A text is sent now; unless given, it was also due now."""
        self.sent[row] = time.perf_counter()
        self.due[row] = self.sent[row] if due is None else due

    def answer(self, row: int, answer: Any) -> None:
        """A text was answered."""
        if self.answers[row] is not None:
            raise SystemExit(f"text {row} was answered twice")
        self.answered[row] = time.perf_counter()
        self.answers[row] = answer

    def vectors(self, width: int) -> NDArray[np.float32]:
        """The answers, shape (texts, width); SystemExit if one is missing or is not a unit vector."""
        missing = [row for row, answer in enumerate(self.answers) if answer is None]
        if missing:
            raise SystemExit(f"{len(missing)} of {self.texts} texts were not answered")
        vectors = np.stack([_decoded(answer) for answer in self.answers]).astype(np.float32)
        if vectors.shape != (self.texts, width):
            raise SystemExit(f"vectors of shape {vectors.shape} instead of {(self.texts, width)}")
        worst = float(np.abs(np.linalg.norm(vectors, axis=1) - 1).max())
        if not worst < 1e-3:
            raise SystemExit(f"a vector's length is {worst} off 1")
        return vectors

    def figures(self) -> dict[str, float]:
        """Texts per second; percentiles of latency and lag, in milliseconds."""
        seconds = max(self.answered) - min(self.due)
        latency = (np.array(self.answered) - np.array(self.due)) * 1e3
        lag = (np.array(self.sent) - np.array(self.due)) * 1e3
        return {
            "rate": self.texts / seconds,
            "seconds": seconds,
            **{f"p{p}": float(np.percentile(latency, p)) for p in (50, 90, 99)},
            "max": float(latency.max()),
            "lag_p50": float(np.percentile(lag, 50)),
            "lag_p99": float(np.percentile(lag, 99)),
            "lag_max": float(lag.max()),
        }


def _decoded(answer: Any) -> Any:
    if not isinstance(answer, bytes):
        return answer
    embeddings = pb.EmbedResponse.FromString(answer).embeddings[0].vectors
    return np.frombuffer(embeddings.data, "<f4").reshape(embeddings.rows, -1)[0]


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


async def closed(call: Call, texts: Sequence[str], concurrency: int) -> Record:
    """A fixed number of calls in flight, until every text is answered."""
    record, queue = Record(len(texts)), iter(enumerate(texts))

    async def worker() -> None:
        for row, text in queue:
            record.send(row)
            record.answer(row, await call(text))

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return record


async def opened(call: Call, arrivals: Sequence[tuple[float, str]]) -> Record:
    """Send each text when it is due, however many are in flight."""
    record = Record(len(arrivals))

    async def one(row: int, due: float, text: str) -> None:
        record.send(row, due)
        record.answer(row, await call(text))

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for row, (offset, text) in enumerate(arrivals):
            await _until(begun + offset)
            tasks.create_task(one(row, begun + offset, text))
    return record


async def streamed(target: Target, texts: Sequence[str], window: int | None) -> Record:
    """All texts over one stream of the SDK, which reads `window` texts ahead (None: its default)."""
    record = Record(len(texts))

    def source() -> Iterator[str]:
        for row, text in enumerate(texts):
            record.send(row)
            yield text

    window = DEFAULT_WINDOW if window is None else window
    async with trimtab.AsyncClient(target.url, timeout=TIMEOUT) as client:
        row = 0
        async for vector in client.embed_stream(source(), window=window):
            record.answer(row, vector)
            row += 1
    return record


async def streamed_when_due(target: Target, arrivals: Sequence[tuple[float, str]]) -> Record:
    """Send each text over one stream of the SDK when it is due."""
    record = Record(len(arrivals))
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
async def feeding(target: Target, documents: Sequence[str], width: int) -> AsyncIterator[None]:
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
    target, texts = Target(options.url, options.encoder), data.mix(options.mix, options.texts)
    arrivals = None
    if options.trace is not None:
        arrivals = trace(options.trace, options.texts)
    elif options.rate is not None:
        arrivals = poisson(texts, options.rate)
    if options.kind == "stream":
        await streamed(target, texts[:WARM_UP], None)
        began = time.process_time()
        if arrivals is None:
            record = await streamed(target, texts, options.concurrency)
        else:
            record = await streamed_when_due(target, arrivals)
        return _figures(record, options.width, time.process_time() - began)
    async with UNARY[options.kind](target) as call:
        await closed(call, texts[:WARM_UP], min(options.concurrency or 8, WARM_UP))
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


def _answered_texts(metrics_url: str) -> float:
    """How many texts the server has answered. The stream's own vectors arrive in order, so in bursts."""
    with urllib.request.urlopen(metrics_url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("trimtab_texts_total"))


def _figures(record: Record, width: int, cpu_seconds: float) -> dict[str, float]:
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
    parser.add_argument("--width", type=int, default=384, help="dimensions that a vector must have")
    parser.add_argument("--core", type=int, required=True, help="the core to run on")
    parser.add_argument("--mix", choices=data.MIXES, default="short", help="lengths of the texts")
    parser.add_argument("--texts", type=int, required=True, help="the maximum number of texts")
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
