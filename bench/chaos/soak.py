"""A long run of one server: does its memory grow with requests or with reloads?"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench.chaos import known, replicas
from bench.chaos.injected import OTHER
from bench.chaos.replicas import Replica, reload
from bench.chaos.table import Bar, PartResult
from trimtab.v1 import encoder_pb2 as pb

CONFIG = """\
[engine]
costs = "{costs}"
[versions]
newest = 1
[sharing]
cache_bytes = 1048576
"""
MOST = 1.05
RELOADS = 100
# Before the first measurement: one-time growth (pools, caches, lazily loaded code) does not count.
WARM_REQUESTS, WARM_RELOADS = 40_000, 10
STREAMS, WINDOW = 4, 256
# One request in this many is a call; the others are messages of streams.
CALLS = 10
# Vectors compared after each reload.
SAMPLE = 50


async def _requests(channel: grpc.aio.Channel, first: int, count: int) -> int:
    """Send one-text requests through streams and calls; returns how many were answered without an error."""
    stream: Any = channel.stream_stream(
        "/trimtab.v1.EncoderService/EmbedStream", response_deserializer=pb.EmbedStreamResponse.FromString
    )
    call: Any = channel.unary_unary("/trimtab.v1.EncoderService/Embed")
    answered = 0

    async def one(numbers: range) -> None:
        nonlocal answered
        window = asyncio.Semaphore(WINDOW)

        async def messages() -> AsyncIterator[bytes]:
            for number in numbers:
                await window.acquire()
                request = pb.EmbedRequest(texts=[known.text(number)], encoder=known.NAME)
                yield pb.EmbedStreamRequest(id=number, request=request).SerializeToString()

        async for response in stream(messages()):
            answered += not response.HasField("error")
            window.release()

    async def calls(numbers: range) -> None:
        nonlocal answered
        for number in numbers:
            request = pb.EmbedRequest(texts=[known.text(number)], encoder=known.NAME)
            await call(request.SerializeToString())
            answered += 1

    each = count // CALLS
    alone, streamed = range(first, first + each), range(first + each, first + count)
    async with asyncio.TaskGroup() as tasks:
        for number in range(STREAMS):
            tasks.create_task(calls(alone[number::STREAMS]))
            tasks.create_task(one(streamed[number::STREAMS]))
    return answered


async def _compare(channel: grpc.aio.Channel, first: int) -> int:
    """How many of a few vectors are wrong."""
    numbers = range(first, first + SAMPLE)
    call: Any = channel.unary_unary(
        "/trimtab.v1.EncoderService/Embed", response_deserializer=pb.EmbedResponse.FromString
    )
    request = pb.EmbedRequest(texts=map(known.text, numbers), encoder=known.NAME)
    rows = (await call(request.SerializeToString())).embeddings[0].vectors
    got = np.frombuffer(rows.data, "<f4").reshape(rows.rows, -1)
    return int((np.abs(got - known.vectors(numbers)).max(axis=1) > known.TOLERANCE).sum())


def _first(turn: int, requests: int) -> int:
    """The number of the first text of a turn; there is a reload after each."""
    if turn <= WARM_RELOADS:
        return WARM_REQUESTS * turn // WARM_RELOADS
    return WARM_REQUESTS + requests * (turn - WARM_RELOADS) // RELOADS


async def _run(replica: Replica, repository: Path, bundle: Path, requests: int) -> PartResult:
    answered = wrong = 0
    resident: list[int] = []
    begun = time.monotonic()
    async with grpc.aio.insecure_channel(replica.url) as channel:
        for turn in range(WARM_RELOADS + RELOADS):
            first, last = _first(turn, requests), _first(turn + 1, requests)
            answered += await _requests(channel, first, last - first)
            wrong += await _compare(channel, first)
            replicas.copy_of(bundle, repository, version=turn + 2)
            await asyncio.to_thread(reload, replica, known.NAME)
            await asyncio.to_thread(reload, replica, OTHER, unload=True)
            shutil.rmtree(repository / known.NAME / str(turn + 1))
            resident.append(replica.resident())
            if turn % 10 == 9:
                print(
                    f"  {time.monotonic() - begun:5.0f} s  {last:8} requests  {turn + 1:4} reloads  "
                    f"{resident[-1] / 2**20:.1f} MB", flush=True,
                )  # fmt: skip
    # A single reading is noisy by a batch in flight; the median of a few is not.
    before, after = (
        float(np.median(part)) for part in (resident[WARM_RELOADS - 5 : WARM_RELOADS], resident[-5:])
    )
    return PartResult(
        {
            "requests": requests, "reloads": 2 * RELOADS, "seconds": round(time.monotonic() - begun, 1),
            "warm_mb": round(before / 2**20, 1), "end_mb": round(after / 2**20, 1),
            "resident_mb": [each >> 20 for each in resident[:: RELOADS // 20]],
        },
        [
            Bar("resident memory, end / warm", round(after / before, 4), MOST),
            Bar("not answered", WARM_REQUESTS + requests - answered, 0),
            Bar("wrong vectors", wrong, 0),
        ],
    )  # fmt: skip


def run(folder: Path, requests: int) -> PartResult:
    """This many requests after the warm-up, with a hundred reloads of each of two encoders in between."""
    bundle, repository = known.bundle(), folder / "models"
    repository.mkdir(parents=True)
    for name in (known.NAME, OTHER):
        replicas.copy_of(bundle, repository, name)
    replica = Replica("soak", folder / "soak", repository, CONFIG.format(costs=folder / "costs"))
    with replicas.running(replica):
        return asyncio.run(_run(replica, repository, bundle, requests))
