"""The real server on made-up places, whose sessions do as a test tells them to."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import tokenizers
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.engine.apart import apart, grouped
from tests.server.fingerprint import fingerprint
from tests.server.models_made import Ids, TextRunner
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab_server.app import App
from trimtab_server.config import (
    Config,
    EngineSettings,
    LimitSettings,
    ServerSettings,
    SharingSettings,
    VersionsSettings,
)
from trimtab_server.engine.batch import Model
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place
from trimtab_server.engine.runners.process import PROGRAM

# Long enough for any machine; only a test that fails waits for it.
PATIENCE = 150.0

Behaviour = Callable[[str, Sequence[Ids]], None]


@dataclass
class Rig:
    """A running server, and what its devices have run since it was ready."""

    app: App | None = None
    behave: Behaviour | None = None  # called before each run; it may raise, or wait
    runs: list[tuple[str, list[int]]] = field(default_factory=list)  # device, lengths
    opened: list[tuple[Model, str]] = field(default_factory=list)
    ill: set[str] = field(default_factory=set)  # encoders whose runs all fail

    def open(self, model: Model, place: Place) -> "FakeSession":
        self.opened.append((model, str(place)))
        return FakeSession(self, str(place), model.encoder)

    def texts_of(self, device: str) -> int:
        return sum(len(lengths) for name, lengths in self.runs if name == device)

    def metric(self, name: str, **labels: str) -> float:
        assert self.app is not None
        return self.app._registry.get_sample_value(name, labels) or 0.0

    def versions(self) -> set[str]:
        """The encoder versions that the metrics name."""
        assert self.app is not None
        samples = (each for metric in self.app._registry.collect() for each in metric.samples)
        return {each.labels["version"] for each in samples if each.labels.get("version")}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the server go on until something is so."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.001)  # a busy loop would keep the server from it

    async def until_up(self, device: str, up: bool) -> None:
        await self.until(lambda: self.metric("trimtab_device_up", device=device) == up)


class FakeSession(TextRunner):
    """Vectors that name their text, where the rig lets it run."""

    def __init__(self, rig: Rig, device: str, encoder: str) -> None:
        self.rig = rig
        self.device = device
        self.encoder = encoder

    def vectors(self, ids: Sequence[Ids]) -> np.ndarray:
        if self.rig.app is not None:
            self.rig.runs.append((self.device, [len(each) for each in ids]))
            if self.rig.behave is not None:
                self.rig.behave(self.device, ids)
            if self.encoder in self.rig.ill:
                raise RuntimeError("this encoder is ill")
        return np.stack([fingerprint(each) for each in ids])


class Gate:
    """Where runs wait until a test lets them go on."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self._arrivals = threading.Semaphore(0)

    def wait(self) -> None:
        """A run arrives, and waits."""
        self._arrivals.release()
        assert self.open.wait(PATIENCE)

    async def arrival(self) -> None:
        """Until one more run has arrived."""
        assert await asyncio.to_thread(self._arrivals.acquire, timeout=PATIENCE)


@dataclass
class Client:
    """Calls without the SDK's retries, which would hide what the server says."""

    stub: encoder_pb2_grpc.EncoderServiceStub
    health: health_pb2_grpc.HealthStub
    tokenizer: tokenizers.Tokenizer

    def embed(
        self, *texts: str, tenant: str = "", timeout: float = PATIENCE, encoder: str = ""
    ) -> "asyncio.Task[None]":
        """Ask for vectors, and check that each is its own text's."""

        async def ask() -> None:
            metadata = (("tenant", tenant),) if tenant else None
            request = pb.EmbedRequest(encoder=encoder, texts=texts)
            response = await self.stub.Embed(request, timeout=timeout, metadata=metadata)
            got = np.frombuffer(response.embeddings[0].vectors.data, "<f4").reshape(len(texts), 384)
            encoded = self.tokenizer.encode_batch(list(texts))
            expected = [fingerprint(np.array(each.ids, np.int32)) for each in encoded]
            np.testing.assert_array_equal(got, np.stack(expected))

        return asyncio.create_task(ask())

    async def serving(self, service: str = "") -> bool:
        response = await self.health.Check(health_pb2.HealthCheckRequest(service=service))
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def until_serving(self, serving: bool) -> None:
        async with asyncio.timeout(PATIENCE):
            while await self.serving() is not serving:
                pass


@asynccontextmanager
async def running(
    repository: Path,
    *places: str,
    workers: int = 1,
    engine: EngineSettings | None = None,
    sharing: SharingSettings | None = None,
    versions: VersionsSettings | None = None,
    program: Sequence[str] = PROGRAM,
    engine_apart: bool = False,
) -> AsyncIterator[tuple[Rig, Client]]:
    """A server on places of these names, each with so many workers; its engine may be behind a socket, as
    that of several front ends is."""
    rig = Rig()
    server = ServerSettings(
        grpc_address="127.0.0.1:0", metrics_address="127.0.0.1:0", drain_seconds=5.0, tenant_header="tenant"
    )
    config = Config(
        server=server,
        limits=LimitSettings(max_calls_per_connection=1 << 16),  # tests send hundreds of calls at once
        engine=engine or EngineSettings(),
        sharing=sharing or SharingSettings(),
        versions=versions or VersionsSettings(),
    )
    made_up = [Place(name, 0, workers) for name in places]
    opening = Opening(rig.open, program, foreign=False)
    async with contextlib.AsyncExitStack() as stack:
        if engine_apart:
            far = await stack.enter_async_context(apart(config, opening, made_up))
            app = App(config, repository, group=await grouped(far))
        else:
            app = App(config, repository, opening, made_up)
        await app.start()
        rig.app = app
        stack.push_async_callback(app.stop)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
            tokenizer = tokenizers.Tokenizer.from_file(str(repository / "all-minilm-l6-v2/1/tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            yield (
                rig,
                Client(
                    encoder_pb2_grpc.EncoderServiceStub(channel),
                    health_pb2_grpc.HealthStub(channel),
                    tokenizer,
                ),
            )
