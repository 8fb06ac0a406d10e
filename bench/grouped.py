"""Requests of several texts each, sent by bare gRPC. Prints one JSON object: texts answered per second.

With an encoder that costs nothing, this is how fast one server process can feed its devices.
"""

import argparse
import asyncio
import json
import os
import time
from typing import Any

import grpc

from bench import data
from trimtab.v1 import encoder_pb2 as pb

IN_FLIGHT = 16


async def run(url: str, texts: list[str], size: int) -> float:
    """Texts per second in requests of `size`; RuntimeError if an answer has the wrong number of vectors."""
    requests = [
        pb.EmbedRequest(texts=texts[start : start + size]).SerializeToString()
        for start in range(0, len(texts), size)
    ]
    waiting = iter(requests)
    async with grpc.aio.insecure_channel(url) as channel:
        method: Any = channel.unary_unary("/trimtab.v1.EncoderService/Embed")

        async def worker() -> int:
            answered = 0
            for request in waiting:
                answered += len(pb.EmbedResponse.FromString(await method(request)).token_counts)
            return answered

        begun = time.perf_counter()
        answered = sum(await asyncio.gather(*(worker() for _ in range(IN_FLIGHT))))
        seconds = time.perf_counter() - begun
    if answered != len(texts):
        raise RuntimeError(f"{answered} vectors for {len(texts)} texts")
    return answered / seconds


def main() -> None:
    """Send them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--core", type=int, required=True, help="the core to run on")
    parser.add_argument("--texts", type=int, required=True, help="how many texts")
    parser.add_argument("--size", type=int, required=True, help="texts in a request")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    texts = data.mix("short", options.texts)
    print(json.dumps({"rate": asyncio.run(run(options.url, texts, options.size))}))


if __name__ == "__main__":
    main()
