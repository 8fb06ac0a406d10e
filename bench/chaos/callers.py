"""Clients of all kinds in one process, which check each answer against the known vector of its text.

    python -m bench.chaos.callers ipv4:127.0.0.1:7001,127.0.0.1:7002 --requests 10000

Kinds: the SDK's async and sync calls and streams, cancelled calls, a stream of the bare protocol, which
detects double answers, and NVIDIA's tritonclient. With --several, also calls for several outputs, calls that
rank candidates, and tritonclient's for sparse and multi-vectors. Prints a JSON object of counts each second.
Sends at least the given number of requests, then goes on until its standard input is closed. A request is one
text. It ends with an answer, or with an error that says what was wrong; without either by its deadline it is
lost.
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

import trimtab
from bench.chaos import known, several
from bench.chaos.ledger import Ledger, Numbers
from trimtab import errors
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc

TIMEOUT = 20.0  # seconds per call; a paused server comes back in time
GRACE = 15.0  # beyond it; a request without an outcome by then is lost
STREAM = 300  # texts of one stream of the SDK
# How often the bare protocol's streams are opened for the same requests.
ATTEMPTS = 8
# The gRPC configuration of clients other than the SDK; gRPC alone does not retry streams.
POLICY = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService", "method": "ModelInfer"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2.5,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
}


@dataclass
class Callers:
    """All kinds, at one target."""

    url: str
    tls: Any
    numbers: Numbers
    ledger: Ledger
    truth: several.Truth | None = None  # what encoders with several outputs must give, if they are called

    async def calls(self, client: trimtab.AsyncClient, kind: str, texts: int) -> None:
        """The SDK's async calls."""

        async def call(numbers: list[int]) -> Any:
            return await client.embed(list(map(known.text, numbers)), encoder=known.NAME)

        while not self.numbers.over:
            await self._told(kind, self.numbers.take(texts), call)

    async def given_up(self, client: trimtab.AsyncClient) -> None:
        """The SDK's async calls, cancelled in flight or at any other point."""
        rng = random.Random(1)
        while not self.numbers.over:
            numbers = self.numbers.take(1)
            self.ledger.count("sent")
            call = asyncio.ensure_future(client.embed(list(map(known.text, numbers)), encoder=known.NAME))
            done, _ = await asyncio.wait((call,), timeout=rng.uniform(0.0, 0.02))
            if not done:
                call.cancel()
                done, _ = await asyncio.wait((call,), timeout=GRACE)
            if not done:
                self.ledger.count("lost")
            elif call.cancelled():
                self.ledger.count("given_up")
            elif (error := call.exception()) is not None:
                self.ledger.error("given up", error)  # type: ignore[arg-type]
            else:
                self.ledger.answer(numbers, call.result())

    async def streams(self, client: trimtab.AsyncClient) -> None:
        """The SDK's streams, one after another."""
        while not self.numbers.over:
            numbers = self.numbers.take(STREAM)
            self.ledger.count("sent", STREAM)
            taken = 0
            stream = client.embed_stream(map(known.text, numbers), encoder=known.NAME, window=128)
            vectors = aiter(stream)
            try:
                while True:
                    async with asyncio.timeout(TIMEOUT + GRACE):
                        vector = await anext(vectors)
                    self._streamed(numbers, taken, vector)
                    taken += 1
            except StopAsyncIteration:
                self.ledger.count("lost", max(0, STREAM - taken))
            except TimeoutError:
                self.ledger.count("lost", STREAM - taken)
            except trimtab.TrimtabError as error:
                self.ledger.error("sdk stream", error, STREAM - taken)

    def sync(self) -> None:
        """The SDK's sync client: calls and streams in turns, in its own thread."""
        with trimtab.Client(self.url, tls=self.tls, timeout=TIMEOUT) as client:
            while not self.numbers.over:
                for _ in range(20):
                    numbers = self.numbers.take(3)
                    self.ledger.count("sent", 3)
                    begun = time.monotonic()
                    try:
                        vectors = client.embed(list(map(known.text, numbers)), encoder=known.NAME)
                        self.ledger.answer(numbers, vectors)
                    except trimtab.TrimtabError as error:
                        self.ledger.error("sdk sync", error, 3)
                    if time.monotonic() - begun > TIMEOUT + GRACE:
                        self.ledger.count("lost", 3)
                self._sync_stream(client)

    def _sync_stream(self, client: trimtab.Client) -> None:
        numbers = self.numbers.take(STREAM)
        self.ledger.count("sent", STREAM)
        taken = 0
        try:
            for vector in client.embed_stream(map(known.text, numbers), encoder=known.NAME, window=128):
                self._streamed(numbers, taken, vector)
                taken += 1
            self.ledger.count("lost", max(0, STREAM - taken))
        except trimtab.TrimtabError as error:
            self.ledger.error("sdk sync stream", error, STREAM - taken)

    def _streamed(self, numbers: list[int], taken: int, vector: Any) -> None:
        if taken < len(numbers):
            self.ledger.answer(numbers[taken : taken + 1], vector[None])
        else:
            self.ledger.count("twice")

    async def bare(self, channel: grpc.aio.Channel) -> None:
        """Streams of the bare protocol: each request has an id, and each id one answer.

        If a stream ends, the unanswered requests are sent again, as the protocol says, a few times.
        """
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        while not self.numbers.over:
            owed = {number: self.numbers.take(2) for number in range(1, 101)}
            self.ledger.count("sent", 2 * len(owed))
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    async with asyncio.timeout(TIMEOUT + GRACE):
                        await self._bare(stub, owed)
                    self.ledger.count("lost", 2 * len(owed))
                    break
                except TimeoutError:
                    self.ledger.count("lost", 2 * len(owed))
                    break
                except grpc.aio.AioRpcError as error:
                    if not owed:
                        break
                    if attempt == ATTEMPTS:
                        self.ledger.error("bare stream", error, 2 * len(owed))
                    await asyncio.sleep(0.1 * attempt)

    async def _bare(self, stub: encoder_pb2_grpc.EncoderServiceStub, owed: dict[int, list[int]]) -> None:
        async def messages() -> AsyncIterator[pb.EmbedStreamRequest]:
            for number, texts in list(owed.items()):
                request = pb.EmbedRequest(texts=map(known.text, texts), encoder=known.NAME)
                yield pb.EmbedStreamRequest(id=number, request=request)

        answered: set[int] = set()
        stream: Any = stub.EmbedStream  # the generated stub has the types of a blocking channel
        async for response in stream(messages(), timeout=TIMEOUT):
            if response.id in answered or response.id not in owed:
                self.ledger.count("twice")
                continue
            answered.add(response.id)
            texts = owed.pop(response.id)
            if response.HasField("error"):
                code, message = errors.code_of(response.error.code), response.error.message
                self.ledger.error("bare stream", errors.from_code(code, message, 0.0), 2)
            else:
                rows = response.response.embeddings[0].vectors
                data = np.frombuffer(rows.data, "<f4")
                self.ledger.answer(texts, data.reshape(rows.rows, -1) if rows.rows else [])

    async def triton(self, client: Any) -> None:
        """NVIDIA's client."""
        import tritonclient.grpc.aio as tritonclient
        from tritonclient.utils import InferenceServerException

        while not self.numbers.over:
            (number,) = numbers = self.numbers.take(1)
            self.ledger.count("sent")
            text = tritonclient.InferInput("text", [1, 1], "BYTES")
            text.set_data_from_numpy(np.array([[known.text(number).encode()]], dtype=object))
            try:
                async with asyncio.timeout(TIMEOUT + GRACE):
                    result = await client.infer(known.NAME, [text], client_timeout=TIMEOUT)
                self.ledger.answer(numbers, result.as_numpy("embeddings"))
            except TimeoutError:
                self.ledger.count("lost")
            except InferenceServerException as error:
                self.ledger.error("tritonclient", error)
                await asyncio.sleep(0.02)

    async def outputs(self, client: trimtab.AsyncClient, truth: several.Truth, texts: int) -> None:
        """Three outputs of one call."""

        async def call(places: list[int]) -> list[bool]:
            given = await client.embed_outputs(
                [several.text(place) for place in places], several.OUTPUTS, encoder=several.THREE
            )
            return several.right(truth, places, given)

        await self._of_pool("outputs", texts, call)

    async def rankings(self, client: trimtab.AsyncClient, truth: several.Truth) -> None:
        """Candidates that a cross-encoder ranks."""

        async def call(places: list[int]) -> list[bool]:
            (place,) = places
            texts = [several.text(other) for other in several.candidates(place)]
            ranking = await client.rerank(several.text(place), texts, encoder=several.JUDGE)
            scores = {each.index: each.score for each in ranking}
            found = np.array([scores[row] for row in range(len(texts))])
            return [bool(np.abs(found - truth.scores[place]).max() < several.TOLERANCE)]

        await self._of_pool("rerank", 1, call)

    async def tensors(self, client: Any, truth: several.Truth) -> None:
        """Several outputs by NVIDIA's client."""
        import tritonclient.grpc.aio as tritonclient
        from tritonclient.utils import InferenceServerException

        wanted = [tritonclient.InferRequestedOutput(name) for name in several.TENSORS]
        while not self.numbers.over:
            places = [number % several.POOL for number in self.numbers.take(2)]
            self.ledger.count("sent", len(places))
            texts = tritonclient.InferInput("text", [len(places), 1], "BYTES")
            content = [[several.text(place).encode()] for place in places]
            texts.set_data_from_numpy(np.array(content, dtype=object))
            try:
                async with asyncio.timeout(TIMEOUT + GRACE):
                    result = await client.infer(
                        several.THREE, [texts], outputs=wanted, client_timeout=TIMEOUT
                    )
                given = several.of_tensors([result.as_numpy(name) for name in several.TENSORS])
                self.ledger.compared(several.right(truth, places, given))
            except TimeoutError:
                self.ledger.count("lost", len(places))
            except InferenceServerException as error:
                self.ledger.error("tritonclient outputs", error, len(places))
                await asyncio.sleep(0.02)

    async def _of_pool(
        self, kind: str, texts: int, call: Callable[[list[int]], Awaitable[list[bool]]]
    ) -> None:
        while not self.numbers.over:
            places = [number % several.POOL for number in self.numbers.take(texts)]
            self.ledger.count("sent", texts)
            try:
                async with asyncio.timeout(TIMEOUT + GRACE):
                    self.ledger.compared(await call(places))
            except TimeoutError:
                self.ledger.count("lost", texts)
            except trimtab.TrimtabError as error:
                self.ledger.error(kind, error, texts)

    async def _told(self, kind: str, numbers: list[int], call: Callable[[list[int]], Awaitable[Any]]) -> None:
        self.ledger.count("sent", len(numbers))
        try:
            async with asyncio.timeout(TIMEOUT + GRACE):
                self.ledger.answer(numbers, await call(numbers))
        except TimeoutError:
            self.ledger.count("lost", len(numbers))
        except trimtab.TrimtabError as error:
            self.ledger.error(kind, error, len(numbers))

    async def run(self, tasks: asyncio.TaskGroup, stack: contextlib.AsyncExitStack) -> None:
        """Start every kind."""
        import tritonclient.grpc.aio as tritonclient

        client = await stack.enter_async_context(trimtab.AsyncClient(self.url, tls=self.tls, timeout=TIMEOUT))
        options = [("grpc.service_config", json.dumps(POLICY)), ("grpc.max_reconnect_backoff_ms", 1000)]
        if credentials := trimtab.sdk.channel.check_credentials(self.tls):
            channel = grpc.aio.secure_channel(self.url, credentials, options)
        else:
            channel = grpc.aio.insecure_channel(self.url, options)
            triton = tritonclient.InferenceServerClient(self.url, channel_args=options)
            for _ in range(4):
                tasks.create_task(self.triton(await stack.enter_async_context(triton)))
            if self.truth is not None:
                tasks.create_task(self.tensors(triton, self.truth))
        await stack.enter_async_context(channel)
        for texts in (1, 1, 1, 1, 1, 1, 8, 32):
            tasks.create_task(self.calls(client, "sdk", texts))
        for _ in range(2):
            tasks.create_task(self.given_up(client))
            tasks.create_task(self.streams(client))
            tasks.create_task(self.bare(channel))
        tasks.create_task(asyncio.to_thread(self.sync))
        if self.truth is not None:
            for texts in (1, 1, 5, 20):
                tasks.create_task(self.outputs(client, self.truth, texts))
            for _ in range(3):
                tasks.create_task(self.rankings(client, self.truth))


async def run(options: argparse.Namespace) -> None:
    """All callers, until there were enough requests and standard input is closed."""
    numbers, ledger = Numbers(options.first, options.requests), Ledger()
    truth = several.truth() if options.several else None
    callers = Callers(options.url, options.tls, numbers, ledger, truth)

    def wait() -> None:
        sys.stdin.read()
        numbers.stop = True

    threading.Thread(target=wait, daemon=True).start()

    async def tell() -> None:
        while not numbers.over:
            print(json.dumps(ledger.told()), flush=True)
            await asyncio.sleep(1)

    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        tasks.create_task(tell())
        await callers.run(tasks, stack)
        stack.callback(ledger.finish)
    print(json.dumps({**ledger.told(), "over": True}), flush=True)


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="HOST:PORT, or a target with several addresses")
    parser.add_argument("--requests", type=int, required=True, help="texts, at least")
    parser.add_argument("--first", type=int, default=0, help="the number of the first text")
    parser.add_argument("--several", action="store_true", help="call encoders with several outputs, too")
    parser.add_argument("--tls", default=False, help="PEM file of the authority; without it, plain text")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
