"""The engine's port between processes: a front end gets what it would get in the engine's own process."""

import asyncio
import dataclasses
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest

import trimtab.errors
from tests.server import toy
from tests.server.engine.apart import CONFIG, PATIENCE, TURN, apart
from tests.server.misbehaving import Gate, running
from tests.server.models_made import payload
from tests.server.toy import SPARSE
from trimtab.errors import InvalidArgument, NotFound, ResourceExhausted, TrimtabError, Unavailable
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.port import AdmissionRequest, Computed, ComputeRequest, EnginePort, ItemError, Turn
from trimtab_server.engine.remote import messages, remote
from trimtab_server.engine.remote.remote import RemoteEngine
from trimtab_server.engine.runners.runner import GraphError
from trimtab_server.link import Link


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


async def computed(engine: EnginePort, number: int, *texts: np.ndarray, turn: Turn = TURN) -> Computed:
    """What an admitted request gets for these texts."""
    admitted = await engine.admit(AdmissionRequest(number, turn, sum(map(len, texts)), 2))
    answered = False
    try:
        work = ComputeRequest(admitted, number, turn, list(map(payload, texts)), (*SPARSE, "sums"))
        async with asyncio.timeout(PATIENCE):
            result = await engine.compute(work)
        answered = True
    finally:
        engine.release(admitted, answered=answered)
    return result


def check(result: Computed, *texts: np.ndarray) -> None:
    for place, text in enumerate(texts):
        for name, values in toy.expected(text, (*SPARSE, "sums")).items():
            np.testing.assert_array_equal(result.result[name].item(place), values)
            assert result.result[name].values.dtype == values.dtype


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def test_what_was_computed_comes_back_as_it_was() -> None:
    texts = [ids(5, 5, 7), ids(9), ids(3, 4, 3, 3)]
    async with apart() as engine:
        front = await engine.front_end()
        number = await front.load(toy.model())
        for _ in range(2):  # the second time from the cache
            check(await computed(front, number, *texts), *texts)
        await until(lambda: front.pressure().run_seconds > 0)
        pressure = front.pressure()
        assert pressure.workers == 1 and set(pressure.paces) == {number}
        assert pressure.queue_seconds(number, "a flow", "interactive") >= 0.0
        await front.unload(number)
        with pytest.raises(NotFound, match="unloaded"):
            await computed(front, number, ids(1))
        assert await front.load(toy.model()) != number, "a number is given once"


@pytest.mark.parametrize("asks_first", [True, False])
async def test_admission_stands_behind_it(asks_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request holds its room until it is released, whether or not it came to be computed."""
    monkeypatch.setattr(remote, "SHORT_TOKENS", 0 if asks_first else 1000)
    async with apart() as engine:
        front, gate = await engine.front_end(), asyncio.Event()
        number = await front.load(toy.model())

        async def request(tokens: int, held: int = 0, turn: Turn = TURN) -> None:
            admitted = await front.admit(AdmissionRequest(number, turn, tokens, held))
            try:
                await front.compute(
                    ComputeRequest(admitted, number, turn, [payload(ids(1, 2, 3))], ("sums",))
                )
                await gate.wait()
            finally:
                front.release(admitted, answered=True)

        admission = engine.own.engine._admission
        first = asyncio.create_task(request(50, 10))
        # What was estimated at 50 turns out to be 3.
        await until(lambda: admission.tokens == 13)
        with pytest.raises(ResourceExhausted, match="max_tokens_in_flight") as caught:
            await request(70)
        assert caught.value.retry_after > 0
        with pytest.raises(InvalidArgument, match="send fewer"):
            await request(101, turn=Turn("another", "another", "bulk", None))
        second = asyncio.create_task(request(30))
        await until(lambda: admission.tokens == 16)
        gate.set()
        await asyncio.gather(first, second)
        await until(lambda: admission.tokens == 0)


async def test_a_refused_tenant_asks_before_its_texts_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart() as engine:
        front = await engine.front_end()
        number = await front.load(toy.model())
        monkeypatch.setattr(remote, "SHORT_TOKENS", 20)
        held = await front.admit(AdmissionRequest(number, TURN, 75, 0))
        with pytest.raises(ResourceExhausted):
            await computed(front, number, ids(*range(10)))
        with pytest.raises(ResourceExhausted):
            await front.admit(AdmissionRequest(number, TURN, 10, 0))
        other = Turn("another", "another", "interactive", None)
        await front.admit(AdmissionRequest(number, other, 10, 0))
        monkeypatch.setattr(remote.time, "monotonic", lambda: time.perf_counter() + 1e9)
        await front.admit(AdmissionRequest(number, TURN, 10, 0))  # after a while, not any more
        front.release(held, answered=False)


async def test_front_ends_share_models_and_caches_and_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart() as engine:
        one, two = await engine.front_end(), await engine.front_end()
        numbers = await asyncio.gather(one.load(toy.model()), two.load(toy.model()))
        assert len(engine.opened) == 1
        for front, number in zip((one, two), numbers, strict=True):
            check(await computed(front, number, ids(8, 8, 9)), ids(8, 8, 9))
        metrics = engine.own.engine.queue._metrics
        assert metrics._answers.shared.labels("toy", 1, "cache").value == 1
        monkeypatch.setattr(remote, "SHORT_TOKENS", 20)
        held = await one.admit(AdmissionRequest(numbers[0], TURN, 60, 0))
        with pytest.raises(ResourceExhausted):
            await two.admit(AdmissionRequest(numbers[1], TURN, 30, 0))
        one.release(held, answered=True)
        await one.unload(numbers[0])
        check(await computed(two, numbers[1], ids(4, 4)), ids(4, 4))
        await two.unload(numbers[1])
        again = await two.load(toy.model())
        assert len(engine.opened) == 2, "it was unloaded when nobody used it any more"
        check(await computed(two, again, ids(4, 4)), ids(4, 4))


class Waiting(toy.Runner):
    """Runs with the id 77 wait at a gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def run(self, batch: Any, wanted: Any) -> Any:
        if (batch["ids"].values == 77).any():
            self._gate.wait()
        return super().run(batch, wanted)


async def test_what_a_lost_front_end_held_is_released() -> None:
    gate = Gate()

    async with apart(
        opening=Opening(lambda model, place: Waiting(gate), toy.PROGRAM, foreign=False)
    ) as engine:
        lost, other = await engine.front_end(), await engine.front_end()
        number, others = await lost.load(toy.model()), await other.load(toy.model())
        working = asyncio.create_task(computed(lost, number, ids(77)))
        await gate.arrival()
        queued = asyncio.create_task(computed(lost, number, ids(1, 2)))
        admission = engine.own.engine._admission
        await until(lambda: admission.tokens == 2 + 1 + 2 + 2)
        await lost.close()
        for task in (working, queued):
            with pytest.raises(Unavailable) as caught:
                await task
            assert caught.value.retry_after > 0
        await until(lambda: admission.tokens == 0)
        await until(lambda: len(engine.own.engine.queue._batcher) == 0)
        gate.open.set()
        check(await computed(other, others, ids(6)), ids(6))


async def test_a_cancelled_request_leaves_the_queue() -> None:
    gate = Gate()

    async with apart(
        opening=Opening(lambda model, place: Waiting(gate), toy.PROGRAM, foreign=False)
    ) as engine:
        front = await engine.front_end()
        number = await front.load(toy.model())
        working = asyncio.create_task(computed(front, number, ids(77)))
        await gate.arrival()
        queued = asyncio.create_task(computed(front, number, ids(1, 2)))
        batcher = engine.own.engine.queue._batcher
        await until(lambda: len(batcher) == 1)
        queued.cancel()
        await until(lambda: len(batcher) == 0)
        gate.open.set()
        check(await working, ids(77))
        await until(lambda: engine.own.engine._admission.tokens == 0)


async def test_another_engine_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front end's numbers stay, and its models are loaded into the new engine."""
    told: list[bool] = []
    async with apart() as first, apart() as second:
        front = await first.front_end()
        await until(lambda: front.serving)
        front.watch(told.append, lambda model, why: None)
        number = await front.load(toy.model())
        monkeypatch.setattr(remote, "SHORT_TOKENS", 0)
        admitted = await front.admit(AdmissionRequest(number, TURN, 3, 2))
        for each in list(first.host._front_ends):
            await each.link.close()
        await until(lambda: told == [False])
        with pytest.raises(Unavailable, match="starting anew"):
            await computed(front, number, ids(1))
        await second.connect(front)
        await until(lambda: told[-1])
        with pytest.raises(Unavailable, match="starting anew"):  # it was admitted by the first
            await front.compute(ComputeRequest(admitted, number, TURN, [payload(ids(1))], ("sums",)))
        front.release(admitted, answered=True)
        check(await computed(front, number, ids(2, 2)), ids(2, 2))
        assert len(second.opened) == 1


async def test_a_model_that_the_new_engine_cannot_load_is_retired() -> None:
    def refuse(model: Any, place: Any) -> Any:
        raise RuntimeError("this graph is broken")

    retired: list[tuple[int, str]] = []
    told: list[bool] = []
    broken = Opening(refuse, toy.PROGRAM, foreign=False)
    async with apart() as first, apart(opening=broken) as second:
        front = await first.front_end()
        front.watch(told.append, lambda model, why: retired.append((model, why)))
        number = await front.load(toy.model())
        for each in list(first.host._front_ends):
            await each.link.close()
        await second.connect(front)
        await until(lambda: retired)
        assert retired[0][0] == number and "this graph is broken" in retired[0][1]
        assert not told[-1]
        await front.unload(number)
        assert told[-1] and front.serving


async def test_engines_that_end_one_after_another_retire_no_model() -> None:
    retired: list[int] = []
    async with apart() as first, apart() as third:
        front = await first.front_end()
        front.watch(lambda up: None, lambda model, why: retired.append(model))
        number = await front.load(toy.model())
        for each in list(first.host._front_ends):
            await each.link.close()
        one, other = socket.socketpair()
        connecting = asyncio.create_task(front.connect(other))
        await until(lambda: front._link is not None and front._waiting)  # it loads its models
        one.close()
        await connecting
        await third.connect(front)
        check(await computed(front, number, ids(2, 2)), ids(2, 2))
        assert not retired


async def test_a_load_waits_for_the_next_engine() -> None:
    async with apart() as engine:
        front = RemoteEngine()
        loading = asyncio.create_task(front.load(toy.model()))
        one, other = socket.socketpair()
        connecting = asyncio.create_task(front.connect(other))
        await until(lambda: front._waiting)
        one.close()
        await connecting
        engine.fronts.append(front)
        await engine.connect(front)
        check(await computed(front, await loading, ids(1)), ids(1))


async def test_a_model_that_is_unloaded_during_a_reload_is_unloaded_there() -> None:
    async with apart() as first, apart() as second:
        front = await first.front_end()
        number = await front.load(toy.model())
        for each in list(first.host._front_ends):
            await each.link.close()
        connecting = asyncio.create_task(second.connect(front))
        await until(lambda: front._waiting)
        await front.unload(number)
        await connecting
        await until(lambda: second.opened and not second.host._by_number)


async def test_who_loads_a_retired_model_gets_another_one() -> None:
    async with apart() as engine:
        one, two = await engine.front_end(), await engine.front_end()
        retired: list[int] = []
        one.watch(lambda up: None, lambda model, why: retired.append(model))
        number = await one.load(toy.model())
        there = one._models[number].there
        assert there is not None
        engine.host.retired(there, "it fails")
        await until(lambda: retired == [number])
        again = await two.load(toy.model())
        assert len(engine.opened) == 2
        await one.unload(number)
        check(await computed(two, again, ids(3)), ids(3))
        await until(lambda: len(engine.host._by_number) == 1)


async def test_an_engine_that_does_not_read_is_given_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart() as engine:
        front = await engine.front_end()
        number = await front.load(toy.model())
        monkeypatch.setattr(Link, "waiting_bytes", property(lambda link: remote.MOST_WAITING_BYTES + 1))
        with pytest.raises(Unavailable, match="does not answer"):
            await computed(front, number, ids(1))


def errors() -> list[Exception]:
    ours = [
        each("what went wrong", 2.5)
        for each in vars(trimtab.errors).values()
        if isinstance(each, type) and issubclass(each, TrimtabError)
    ]
    return [*ours, GraphError("a graph"), ItemError(3, "ValueError")]


@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_errors_arrive_as_they_were(error: Exception) -> None:
    (message,) = messages.decode_to_front_end(messages.encode([messages.failed(7, error)]))
    arrived = messages.raised(message)
    assert type(arrived) is type(error) and str(arrived) == str(error) and message.call == 7
    for name in ("retry_after", "row", "why"):
        assert getattr(arrived, name, None) == getattr(error, name, None)


def test_an_error_of_no_kind_of_ours_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    arrived = messages.raised(messages.failed(1, KeyError("a secret of somebody's")))
    assert type(arrived) is trimtab.errors.InternalError and "secret" not in str(arrived)
    assert "a secret of somebody's" in caplog.text


def test_a_text_that_is_not_unicode_arrives_escaped() -> None:
    (message,) = messages.decode_to_front_end(
        messages.encode([messages.failed(1, trimtab.errors.BundleError("models/\udcff cannot be read"))])
    )
    assert str(messages.raised(message)) == r"models/\udcff cannot be read"


async def test_a_server_with_its_engine_apart_serves_as_it_does(minilm_repository: Path) -> None:
    gate = Gate()
    async with running(minilm_repository, "one", engine_apart=True) as (rig, client):
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


def test_what_is_no_plain_value_is_refused() -> None:
    work = messages.Compute(1, 1, 1, TURN, [], (lambda: None,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no plain value"):
        messages.encode([work])


def test_the_configuration_is_small_enough() -> None:
    assert CONFIG.quota.max_tokens_in_flight < remote.SHORT_TOKENS, "or nothing here is admitted unasked"
    assert dataclasses.is_dataclass(toy.model()) and msgspec.msgpack.encode(TURN)
