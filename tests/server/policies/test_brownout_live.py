"""Under overload queries are answered by a cheaper variant, as far as that was measured; nothing else is."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import tritonclient.grpc

import trimtab
from tests import adapters_made, variants_made
from tests.server.server_process import ServerProcess, serve
from tests.server.spaces_made import unit
from tests.variants_made import NAME, TEXTS, WORDS
from trimtab.artifacts import variants
from trimtab.artifacts.bundle import Bundle

TOLERANCE = 1e-5
SECONDS = 120
CONFIG = """
devices = ["cpu"]
[server]
tenant_header = "x-tenant"  # whose calls wait for each other
[encoders.layered.brownout]
variant = "{}"
min_quality = 0.97
above_seconds = 0.02
calm_seconds = 0.5
"""
TENANT = {"x-tenant": "search"}
WIDEN = adapters_made.rotation(32, 16, 3).T


@dataclass
class World:
    server: ServerProcess
    bundle: Bundle
    fallback: str
    adapters: tuple[str, ...]
    expected: np.ndarray  # of TEXTS in a brownout


@pytest.fixture(scope="module", params=["small", "early-16"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server whose fallback's queries are good enough as they are, and one where they need an adapter."""
    repository = tmp_path_factory.mktemp("brownout")
    bundle = variants_made.bundle(repository)
    rows, names = variants_made.rows(bundle, request.param, TEXTS), ()
    if request.param == "early-16":
        variant = variants.named(bundle.manifest, "early-16")
        assert variant is not None
        adapters_made.adapter(
            repository, "widen", adapters_made.end(variants.alone(bundle.manifest, variant)),
            adapters_made.end(bundle.manifest), adapters_made.linear(WIDEN),
        )  # fmt: skip
        rows, names = unit(rows @ WIDEN), (f"{NAME}/widen",)
    config = CONFIG.format(request.param)
    with serve(repository, tmp_path_factory.mktemp("brownout-server"), config) as server:
        yield World(server, bundle, request.param, names, rows)


@contextmanager
def overload(url: str) -> Iterator[None]:
    """Somebody fills an index, and thinks nothing of it."""
    over = threading.Event()

    def passages() -> Iterator[str]:
        for number in itertools.count():
            if over.is_set():
                return
            yield " ".join(WORDS[(number + k * (number % 89 + 1)) % len(WORDS)] for k in range(30))

    def feed() -> None:
        with trimtab.Client(url, timeout=100, metadata=TENANT) as client:
            for _ in client.embed_stream(passages(), role="passage", window=1000, timeout=240):
                pass

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def until(client: trimtab.Client, browned_out: bool) -> trimtab.Embeddings:
    """Ask until the server is, or is not, in a brownout."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        answer = client.embed_detailed(TEXTS, role="query", timeout=SECONDS)
        if answer.browned_out == browned_out:
            return answer
    raise AssertionError(f"the server never was in the state browned_out = {browned_out}")


def test_it_begins_says_so_spares_the_others_and_ends(world: World) -> None:
    whole, own = variants_made.rows(world.bundle, "fp32", TEXTS), world.bundle.manifest.space
    gauge = f'trimtab_brownout{{encoder="{NAME}",version="1"}}'
    counter = f'trimtab_brownout_texts_total{{encoder="{NAME}",variant="{world.fallback}",version="1"}}'
    with trimtab.Client(world.server.url, timeout=100, metadata=TENANT) as client:
        answer = client.embed_detailed(TEXTS, role="query")
        assert (answer.variant, answer.browned_out) == ("fp32", False)
        assert world.server.metrics()[gauge] == 0
        with overload(world.server.url):
            answer = until(client, True)
            assert (answer.variant, answer.space, answer.adapters) == (world.fallback, own, world.adapters)
            np.testing.assert_allclose(answer.vectors, world.expected, atol=TOLERANCE)
            assert world.server.metrics()[gauge] == 1
            options: list[trimtab.EmbedOptions] = [
                {"role": "query", "allow_brownout": False},
                {"role": "passage"},
                {},
                {"role": "query", "variant": "fp32"},
                {"role": "query", "layers": 8},
                {"role": "query", "priority": "bulk"},
            ]
            if world.fallback == "small":
                for each in options:
                    spared = client.embed_detailed(TEXTS, **each, timeout=SECONDS)
                    assert (spared.variant, spared.browned_out, spared.space) == ("fp32", False, own), each
                    np.testing.assert_allclose(spared.vectors, whole, atol=TOLERANCE)
                cut = client.embed_detailed(TEXTS, role="query", dimensions=8, timeout=SECONDS)
                assert not cut.browned_out, "what a fallback keeps was measured of whole vectors"
            streams_and_tritonclient(world)
        answer = until(client, False)
        assert (answer.variant, answer.space) == ("fp32", own)
        np.testing.assert_allclose(answer.vectors, whole, atol=TOLERANCE)
        found = world.server.metrics()
        assert found[gauge] == 0 and found[counter] >= len(TEXTS)


def streams_and_tritonclient(world: World) -> None:
    async def read() -> list[np.ndarray]:
        async with trimtab.AsyncClient(world.server.url, timeout=100, metadata=TENANT) as client:
            stream = client.embed_stream(TEXTS, role="query", timeout=SECONDS)
            rows = [row async for row in stream]
            assert (stream.variant, stream.browned_out) == (world.fallback, True)
            return rows

    np.testing.assert_allclose(np.stack(asyncio.run(read())), world.expected, atol=TOLERANCE)
    with tritonclient.grpc.InferenceServerClient(world.server.url) as triton:
        tensor = tritonclient.grpc.InferInput("text", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[TEXTS[3].encode()]], object))
        result = triton.infer(NAME, [tensor], parameters={"input_type": "query"}, headers=TENANT)
        assert result.get_response().parameters["browned_out"].bool_param
        np.testing.assert_allclose(result.as_numpy("embeddings")[0], world.expected[3], atol=TOLERANCE)
        asked = {"input_type": "query", "allow_brownout": False}
        result = triton.infer(NAME, [tensor], parameters=asked, headers=TENANT)
        assert "browned_out" not in result.get_response().parameters
