"""Whatever goes through the engine's port could go to another process: here all of it is encoded and decoded.

The same server then answers, admits, refuses and counts as it does without.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

import trimtab_server.app
from tests.server import toy
from tests.server.misbehaving import Gate, running
from tests.server.models_made import payload
from tests.server.toy import PROGRAM, SPARSE
from trimtab.errors import InvalidArgument, NotFound, ResourceExhausted, TrimtabError, code_of, from_code
from trimtab_server.config import Quota
from trimtab_server.engine.admission.admission import Admission
from trimtab_server.engine.admission.quotas import Quotas
from trimtab_server.engine.batch import Model
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place
from trimtab_server.engine.local import LocalEngine
from trimtab_server.engine.port import AdmissionRequest, Computed, ComputeRequest, ItemError, Pressure, Turn
from trimtab_server.engine.queue.batcher import Batcher
from trimtab_server.engine.queue.sharing import Sharing
from trimtab_server.engine.runners import frames
from trimtab_server.observing.metrics import Metrics

T = TypeVar("T")
PATIENCE = 120.0
TURN = Turn("tenant", "a flow", "interactive", None)
NAME = "all-minilm-l6-v2"


def sent(value: T, kind: type[T]) -> T:
    """A value of the port, as another process would get it."""
    if kind is Model:  # as it goes to a device's process
        return frames.decode(frames.encode(value), kind)  # type: ignore[type-var,arg-type]
    encoded = msgspec.msgpack.encode(value, enc_hook=_numbers)
    return msgspec.msgpack.decode(encoded, type=kind, dec_hook=_array)


def _numbers(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    raise TypeError(f"{value!r} is no plain value")


def _array(kind: Any, value: Any) -> Any:
    dtype, shape, data = value
    return np.frombuffer(data, dtype).reshape(shape)


class Failed(msgspec.Struct):
    """What a call of the port has raised."""

    code: int
    message: str
    retry_after: float
    item: tuple[int, str] | None = None  # of an ItemError: where, and why


class Loopback(LocalEngine):
    """Gets copies of what it is asked, and answers with copies."""

    used: set[str]  # what was called of it; tests set it

    async def load(self, model: Model) -> int:
        return sent(await self._raised("load", super().load(sent(model, Model))), int)

    async def unload(self, model: int) -> None:
        await self._raised("unload", super().unload(sent(model, int)))

    async def admit(self, request: AdmissionRequest) -> int:
        return sent(await self._raised("admit", super().admit(sent(request, AdmissionRequest))), int)

    async def compute(self, request: ComputeRequest) -> Computed:
        return sent(await self._raised("compute", super().compute(sent(request, ComputeRequest))), Computed)

    def release(self, admitted: int, *, answered: bool) -> None:
        self.used.add("release")
        super().release(sent(admitted, int), answered=sent(answered, bool))

    def pressure(self) -> Pressure:
        self.used.add("pressure")
        return sent(super().pressure(), Pressure)

    async def _raised(self, name: str, answer: Any) -> Any:
        self.used.add(name)
        try:
            return await answer
        except TrimtabError as error:
            item = (error.row, error.why) if isinstance(error, ItemError) else None
            failed = sent(Failed(error.code, str(error), getattr(error, "retry_after", 0.0), item), Failed)
        if failed.item is not None:
            raise ItemError(*failed.item)
        raise from_code(code_of(failed.code), failed.message, failed.retry_after)


@asynccontextmanager
async def looped() -> AsyncIterator[Loopback]:
    """An engine of small quotas, whose device gives more than vectors, behind a port that copies."""
    place = Place("cpu", 0, 1)
    opening = Opening(lambda model, place: toy.Runner(), PROGRAM, foreign=False)
    quotas = Quotas(Quota(max_tokens_in_flight=80), {})
    engine = Loopback(
        Batcher(4096, 64),
        Sharing(single_flight=True, across_tenants=False, cache_bytes=1 << 20),
        [Device(place, opening.home(place, isolated=False))],
        Admission(100, quotas),
        Metrics(CollectorRegistry()),
        hang_seconds=PATIENCE, load_seconds=PATIENCE,
        serving=lambda up: None, retired=lambda model, why: None,
    )  # fmt: skip
    engine.used = set()
    engine.start()
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.stop)


async def test_what_was_computed_comes_back_as_it_was() -> None:
    texts = [np.array(each, np.int32) for each in ([5, 5, 7], [9], [3, 4, 3, 3])]
    async with looped() as engine:
        number = await engine.load(toy.model())
        for _ in range(2):  # the second time from the cache
            admitted = await engine.admit(AdmissionRequest(number, TURN, 10, 2))
            work = ComputeRequest(admitted, number, TURN, list(map(payload, texts)), (*SPARSE, "sums"))
            async with asyncio.timeout(PATIENCE):
                computed = await engine.compute(work)
            engine.release(admitted, answered=True)
            for place, text in enumerate(texts):
                for name, values in toy.expected(text, work.wanted).items():
                    np.testing.assert_array_equal(computed.result[name].item(place), values)
                    assert computed.result[name].values.dtype == values.dtype
        pressure = engine.pressure()
        assert pressure.workers == 1 and pressure.run_seconds > 0 and set(pressure.paces) == {number}
        assert pressure.queue_seconds(number, "a flow", "interactive") >= 0.0
        await engine.unload(number)
        with pytest.raises(NotFound, match="unloaded"):
            await engine.admit(AdmissionRequest(number, TURN, 10, 2))
        assert await engine.load(toy.model()) != number, "a number is given once"
        assert engine.used == {"load", "unload", "admit", "compute", "release", "pressure"}


async def test_admission_stands_behind_it() -> None:
    """A request holds its room until it is released, whether or not it came to be computed."""
    async with looped() as engine:
        number = await engine.load(toy.model())
        first = await engine.admit(AdmissionRequest(number, TURN, 50, 10))
        with pytest.raises(ResourceExhausted, match="max_tokens_in_flight") as caught:
            await engine.admit(AdmissionRequest(number, TURN, 30, 0))
        assert caught.value.retry_after > 0
        with pytest.raises(InvalidArgument, match="send fewer"):
            await engine.admit(AdmissionRequest(number, Turn("another", "another", "bulk", None), 101, 0))
        # What was estimated at 50 turns out to be 3.
        payloads = [payload(np.array([1, 2, 3], np.int32))]
        await engine.compute(ComputeRequest(first, number, TURN, payloads, ("sums",)))
        second = await engine.admit(AdmissionRequest(number, TURN, 30, 0))
        assert second != first
        with pytest.raises(ResourceExhausted):
            await engine.admit(AdmissionRequest(number, TURN, 60, 0))
        for admitted in (first, second):
            engine.release(admitted, answered=False)
        engine.release(await engine.admit(AdmissionRequest(number, TURN, 80, 0)), answered=False)


async def test_a_server_behind_such_a_port_serves_as_it_does(
    minilm_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loopback.used = set()
    monkeypatch.setattr(trimtab_server.app, "LocalEngine", Loopback)
    gate = Gate()
    async with running(minilm_repository, "one") as (rig, client):
        await asyncio.gather(*(client.embed(f"text {number}", "another") for number in range(20)))
        rig.behave = lambda device, ids: gate.wait()
        late = client.embed("a text that comes too late", timeout=5.0)
        await gate.arrival()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.embed("behind it", timeout=0.01)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        rig.behave = None
        gate.open.set()
        await late
        await client.embed("and on")
    assert Loopback.used >= {"load", "admit", "compute", "release", "pressure"}


def test_what_is_no_plain_value_would_be_found() -> None:
    with pytest.raises(TypeError, match="no plain value"):
        sent(ComputeRequest(1, 1, TURN, [], (lambda: None,)), ComputeRequest)  # type: ignore[arg-type]
