"""A well-behaved caller: a few texts at a time, each answer compared with the known vector.

python -m bench.chaos.well URL SECONDS [TOKEN]
"""

import asyncio
import json
import sys
import time
from typing import Any

import grpc
import numpy as np

from bench.chaos import known
from trimtab.v1 import encoder_pb2 as pb

AT_A_TIME = 2
# Pause between calls, so that these calls alone do not keep the server busy.
PAUSE_SECONDS = 0.005


async def _call(url: str, seconds: float, token: str) -> dict[str, Any]:
    took: list[float] = []
    refused: dict[str, int] = {}
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    until = 0.0

    async def again(call: Any, number: int) -> None:
        while time.monotonic() < until:
            number += AT_A_TIME
            request = pb.EmbedRequest(texts=[known.text(number)], encoder=known.NAME)
            begun = time.perf_counter()
            try:
                response = await call(request.SerializeToString(), metadata=metadata, timeout=60)
                got = np.frombuffer(response.embeddings[0].vectors.data, "<f4")
                if np.abs(got - known.vectors([number])[0]).max() > known.TOLERANCE:
                    raise AssertionError(f"the vector of {number} is another's")
            except grpc.aio.AioRpcError as error:
                words = f"{error.code().name}: {error.details()}"
                refused[words] = refused.get(words, 0) + 1
            took.append(time.perf_counter() - begun)
            await asyncio.sleep(PAUSE_SECONDS)

    async with grpc.aio.insecure_channel(url, [("grpc.enable_retries", 0)]) as channel:
        begun = time.monotonic()
        await channel.channel_ready()
        connected = time.monotonic() - begun
        until = time.monotonic() + seconds
        call: Any = channel.unary_unary(
            "/trimtab.v1.EncoderService/Embed", response_deserializer=pb.EmbedResponse.FromString
        )
        await asyncio.gather(*(again(call, number) for number in range(AT_A_TIME)))
    return {
        "calls": len(took), "p50_ms": round(1000 * float(np.quantile(took, 0.5)), 2),
        "p99_ms": round(1000 * float(np.quantile(took, 0.99)), 2), "most_ms": round(1000 * max(took), 1),
        "connect_ms": round(1000 * connected, 1), "refused": sum(refused.values()), "words": refused,
    }  # fmt: skip


def main() -> None:
    """Make calls, and print their latencies as JSON."""
    url, seconds, *token = sys.argv[1:]
    sys.stdout.write(json.dumps(asyncio.run(_call(url, float(seconds), "".join(token)))))


if __name__ == "__main__":
    main()
