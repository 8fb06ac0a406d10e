"""Every client gives the vectors of sentence-transformers, while 64 others hammer the server."""

import asyncio
import json
import queue
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio

import trimtab
from tests.server.server_process import NAME, ServerProcess
from tests.texts import TEXTS

TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def hammer(server: ServerProcess, truth: np.ndarray) -> Iterator[None]:
    """64 clients that ask for random texts for as long as the tests of this file run."""
    stop = threading.Event()
    failures: list[BaseException] = []

    async def client(number: int, sdk: trimtab.AsyncClient) -> None:
        rng = random.Random(number)
        while not stop.is_set():
            texts = rng.sample(TEXTS, rng.choice([1, 1, 1, 2, 5]))
            assert len(await sdk.embed(texts, encoder=NAME, timeout=240)) == len(texts)

    async def clients() -> None:
        async with trimtab.AsyncClient(server.url, timeout=100) as sdk:
            await asyncio.gather(*(client(number, sdk) for number in range(64)))

    def run() -> None:
        try:
            asyncio.run(clients())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    stop.set()
    thread.join(60)
    assert not thread.is_alive() and not failures, failures


def tensor(texts: list[str], *, flat: bool = False) -> list[tritonclient.grpc.InferInput]:
    shape = [len(texts)] if flat else [len(texts), 1]
    array = np.array([text.encode() for text in texts], object).reshape(shape)
    tensor = tritonclient.grpc.InferInput("text", shape, "BYTES")
    tensor.set_data_from_numpy(array)
    return [tensor]


@pytest.mark.parametrize("flat", [True, False])
def test_tritonclient(server: ServerProcess, truth: np.ndarray, flat: bool) -> None:
    with tritonclient.grpc.InferenceServerClient(server.url) as client:
        result = client.infer(NAME, tensor(TEXTS, flat=flat), request_id="seven")
    assert result.get_response().id == "seven"
    np.testing.assert_allclose(result.as_numpy("embeddings"), truth, atol=TOLERANCE)
    counts = result.as_numpy("token_count")
    assert counts.shape == (len(TEXTS), 1) and counts.min() == 2 and counts.max() == 256


async def test_tritonclient_aio(server: ServerProcess, truth: np.ndarray) -> None:
    async with tritonclient.grpc.aio.InferenceServerClient(server.url) as client:
        rows = await asyncio.gather(*(client.infer(NAME, tensor([text])) for text in TEXTS))
    vectors = np.concatenate([row.as_numpy("embeddings") for row in rows])
    np.testing.assert_allclose(vectors, truth, atol=TOLERANCE)


def test_tritonclient_stream(server: ServerProcess, truth: np.ndarray) -> None:
    answers: queue.Queue[tuple[tritonclient.grpc.InferResult | None, Exception | None]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number, text in enumerate(TEXTS):
            client.async_stream_infer(NAME, tensor([text]), request_id=str(number))
        for number in range(len(TEXTS)):
            result, error = answers.get(timeout=240)
            assert error is None and result is not None
            assert result.get_response().id == str(number), "in the order of the requests"
            np.testing.assert_allclose(result.as_numpy("embeddings")[0], truth[number], atol=TOLERANCE)
        client.stop_stream()


def test_sdk(server: ServerProcess, truth: np.ndarray) -> None:
    with trimtab.Client(server.url, timeout=100) as client:
        vectors = client.embed(TEXTS, encoder=NAME, timeout=240)
        assert vectors.shape == truth.shape and vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, truth, atol=TOLERANCE)
        stream = client.embed_stream(iter(TEXTS * 3), encoder=NAME, timeout=240)
        np.testing.assert_allclose(np.stack(list(stream)), np.tile(truth, (3, 1)), atol=TOLERANCE)


async def test_sdk_async(server: ServerProcess, truth: np.ndarray) -> None:
    async with trimtab.AsyncClient(server.url, timeout=100) as client:
        vectors = await client.embed(TEXTS, encoder=NAME, timeout=240)
        np.testing.assert_allclose(vectors, truth, atol=TOLERANCE)
        rows = [row async for row in client.embed_stream(TEXTS, encoder=NAME, timeout=240)]
        np.testing.assert_allclose(np.stack(rows), truth, atol=TOLERANCE)


def test_command(server: ServerProcess, truth: np.ndarray, tmp_path: Path) -> None:
    source, out = tmp_path / "texts.jsonl", tmp_path / "vectors.npy"
    source.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    command = [sys.executable, "-m", "trimtab.cli", "embed", str(source), "--column", "body"]
    command += ["--url", server.url, "--encoder", NAME, "--output", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(out), truth, atol=TOLERANCE)
