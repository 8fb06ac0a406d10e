"""Devices that raise or hang, behind the real server: others do their work, and they come back when well."""

import asyncio
import dataclasses
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from tests.server.fingerprint import fingerprint
from tests.server.misbehaving import PATIENCE, FakeSession, Gate, running
from tests.server.models_made import ALONE, Ids, payload
from trimtab_server.callers.access import SERVER
from trimtab_server.config import EngineSettings
from trimtab_server.engine.fleet.devices import PROBE_UNITS
from trimtab_server.engine.port import Turn

IMPATIENT = EngineSettings(hang_seconds=0.05)
NAME = "all-minilm-l6-v2"


def probe(ids: Sequence[Ids]) -> bool:
    """Whether a run is a probe: one text of padding."""
    return len(ids) == 1 and len(ids[0]) == PROBE_UNITS and not ids[0].any()


def code(call: "asyncio.Task[None]") -> grpc.StatusCode | None:
    """What a call was answered with; None: vectors."""
    error = call.exception()
    if error is None:
        return None
    assert isinstance(error, grpc.aio.AioRpcError), error
    return error.code()


async def test_a_device_that_raises_goes_out_and_comes_back(minilm_repository: Path) -> None:
    broken = threading.Event()
    broken.set()

    def behave(device: str, ids: Sequence[Ids]) -> None:
        if device == "bad:0" and broken.is_set():
            raise RuntimeError("no device")

    async with running(minilm_repository, "bad", "good") as (rig, client):
        rig.behave = behave
        while rig.metric("trimtab_device_up", device="bad:0"):
            await client.embed("a text", "and another")
        assert rig.metric("trimtab_device_failures_total", device="bad:0", reason="raised") == 1
        assert rig.metric("trimtab_device_up", device="good:0") == 1 and await client.serving()
        await rig.until(
            lambda: rig.metric("trimtab_device_failures_total", device="bad:0", reason="probe") >= 2
        )
        busy = rig.metric("trimtab_device_busy_seconds_total", device="good:0")
        await asyncio.gather(*(client.embed(f"text {number}") for number in range(20)))
        assert rig.metric("trimtab_device_busy_seconds_total", device="good:0") > busy
        broken.clear()
        await rig.until_up("bad:0", True)
        before = rig.texts_of("bad:0")
        while rig.texts_of("bad:0") == before:
            await asyncio.gather(*(client.embed(f"text {number}") for number in range(20)))


async def test_a_device_that_fails_only_on_work_is_found_out_by_comparison(minilm_repository: Path) -> None:
    def behave(device: str, ids: Sequence[Ids]) -> None:
        if device == "bad:0" and not probe(ids):
            raise MemoryError

    async with running(minilm_repository, "bad", "good") as (rig, client):
        rig.behave = behave
        while not rig.metric("trimtab_device_failures_total", device="bad:0", reason="raised"):
            await asyncio.gather(*(client.embed(f"text {number}") for number in range(20)))
        await rig.until_up("bad:0", True)  # its probes are well


async def test_a_poisoned_text_fails_alone_and_takes_no_device_out(minilm_repository: Path) -> None:
    def behave(device: str, ids: Sequence[Ids]) -> None:
        if any(len(each) == 50 for each in ids):
            raise RuntimeError("poison")

    async with running(minilm_repository, "one", "two") as (rig, client):
        gate = Gate()
        rig.behave = lambda device, ids: gate.wait()  # so that the next ones go as batches
        first = []
        for text in ("first", "second"):
            first.append(client.embed(text))
            await gate.arrival()
        good = [client.embed(f"text {number}") for number in range(40)]
        bad = client.embed("neighbour", "a " * 47 + "a")
        await rig.until(lambda: rig.metric("trimtab_queued_texts") >= 42)
        rig.behave = behave
        gate.open.set()
        await asyncio.wait([bad, *good, *first])
        assert {code(call) for call in (*good, *first)} == {None}
        assert code(bad) is grpc.StatusCode.INTERNAL
        assert "texts[1]" in str(bad.exception()) and "poison" not in str(bad.exception())
        for device in ("one:0", "two:0"):
            assert rig.metric("trimtab_device_failures_total", device=device, reason="raised") == 0


async def test_a_run_that_hangs_is_done_elsewhere_and_answered_once(minilm_repository: Path) -> None:
    gate = Gate()

    def behave(device: str, ids: Sequence[Ids]) -> None:
        if device == "bad:0":
            gate.wait()

    async with running(minilm_repository, "bad", "good", engine=IMPATIENT) as (rig, client):
        rig.behave = behave
        calls = [client.embed(f"text {number}", "and more") for number in range(50)]
        await gate.arrival()
        await asyncio.gather(*calls)
        await rig.until_up("bad:0", False)
        assert rig.metric("trimtab_device_failures_total", device="bad:0", reason="hung") == 1
        await client.embed("the other one goes on")
        gate.open.set()  # the hung run returns at last: its result is ignored, and its device is probed
        await rig.until_up("bad:0", True)
        await asyncio.gather(*(client.embed(f"text {number}") for number in range(50)))


async def test_every_device_hangs_and_the_server_says_so_until_one_is_back(minilm_repository: Path) -> None:
    gate = Gate()

    async with running(minilm_repository, "one", "two", engine=IMPATIENT) as (rig, client):
        assert await client.serving() and await client.serving(NAME)
        rig.behave = lambda device, ids: gate.wait()
        calls = [client.embed(f"text {number}") for number in range(30)]
        await asyncio.wait(calls)
        assert {code(call) for call in calls} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
        await client.until_serving(False)
        for service in ("trimtab.v1.EncoderService", NAME, f"{NAME}/1"):
            assert not await client.serving(service)
        assert rig.metric("trimtab_encoder_ready", encoder=NAME, version="1") == 0
        late = client.embed("nobody is there")
        await asyncio.wait([late])
        assert code(late) is grpc.StatusCode.UNAVAILABLE
        gate.open.set()
        await client.until_serving(True)
        assert await client.serving(f"{NAME}/1")
        await client.embed("back again")


async def test_a_text_that_hangs_two_devices_is_not_tried_a_third_time(minilm_repository: Path) -> None:
    gate = Gate()

    def behave(device: str, ids: Sequence[Ids]) -> None:
        if any(len(each) == 50 for each in ids):
            gate.wait()

    async with running(minilm_repository, "one", "two", "three", engine=IMPATIENT) as (rig, client):
        rig.behave = behave
        bad = client.embed("a " * 47 + "a")
        await asyncio.wait([bad])
        assert code(bad) is grpc.StatusCode.INTERNAL and "one by one" in str(bad.exception())
        await client.embed("the third goes on")
        assert sum(50 in lengths for _, lengths in rig.runs) == 2
        gate.open.set()


async def test_a_place_goes_on_with_the_workers_that_do_not_hang(minilm_repository: Path) -> None:
    """One of two threads of a single device hangs: the probe runs on the other."""
    gate = Gate()

    def behave(device: str, ids: Sequence[Ids]) -> None:
        if any(len(each) == 50 for each in ids):
            gate.wait()

    async with running(minilm_repository, "one", workers=2, engine=IMPATIENT) as (rig, client):
        rig.behave = behave
        bad = client.embed("a " * 47 + "a")
        await asyncio.wait([bad])
        assert code(bad) is grpc.StatusCode.UNAVAILABLE and "one:0 did not answer" in str(bad.exception())
        await client.until_serving(True)
        await asyncio.gather(*(client.embed(f"text {number}") for number in range(20)))
        gate.open.set()


async def test_callers_that_leave_during_a_hang_are_not_tried_again(minilm_repository: Path) -> None:
    gate = Gate()

    def behave(device: str, ids: Sequence[Ids]) -> None:
        if any(len(each) == 50 for each in ids):
            gate.wait()

    async with running(minilm_repository, "one", "two", engine=EngineSettings(hang_seconds=1.0)) as (
        rig,
        client,
    ):
        rig.behave = behave
        gone = client.embed("a " * 47 + "a")
        await gate.arrival()
        gone.cancel()
        short = client.embed("b " * 47 + "b", timeout=0.2)  # the other device hangs on this one
        await gate.arrival()
        await asyncio.wait([gone, short])
        assert code(short) is grpc.StatusCode.DEADLINE_EXCEEDED
        await client.until_serving(False)
        assert sum(50 in lengths for _, lengths in rig.runs) == 2
        gate.open.set()
        await client.until_serving(True)
        assert sum(50 in lengths for _, lengths in rig.runs) == 2


async def test_unloading_and_stopping_do_not_wait_for_what_hangs(minilm_repository: Path) -> None:
    gate = Gate()
    async with running(minilm_repository, "one", engine=IMPATIENT) as (rig, client):
        rig.behave = lambda device, ids: gate.wait()
        bad = client.embed("a text")
        await gate.arrival()
        assert rig.app is not None
        async with asyncio.timeout(120):
            await rig.app.repository.unload(SERVER, NAME)
        await asyncio.wait([bad])
        assert code(bad) is grpc.StatusCode.UNAVAILABLE
    gate.open.set()  # only now: the server has stopped before


async def test_an_encoder_loaded_while_a_device_is_out_is_loaded_there_before_it_comes_back(
    minilm_repository: Path,
) -> None:
    broken = threading.Event()
    broken.set()

    def behave(device: str, ids: Sequence[Ids]) -> None:
        if device == "bad:0" and broken.is_set():
            raise RuntimeError("no device")

    async with running(minilm_repository, "bad", "good") as (rig, client):
        rig.behave = behave
        while rig.metric("trimtab_device_up", device="bad:0"):
            await client.embed("a text")
        assert rig.app is not None
        other = dataclasses.replace(rig.app.repository.encoders(SERVER)[0].model)
        await rig.app._engine.queue.load(other)
        assert [device for model, device in rig.opened if model is other] == ["good:0"]
        broken.clear()
        await rig.until_up("bad:0", True)
        assert [device for model, device in rig.opened if model is other] == ["good:0", "bad:0"]
        texts = [np.full(number + 1, 7, np.int32) for number in range(200)]
        computed = await rig.app._engine.queue.compute(
            other, list(map(payload, texts)), ALONE, Turn("", "", "interactive", None)
        )
        np.testing.assert_array_equal(computed.result["dense"].values, [fingerprint(each) for each in texts])
        await rig.app._engine.queue.unload(other)


async def test_a_slow_device_does_not_hold_up_a_fast_one(minilm_repository: Path) -> None:
    """The slow one takes five times as long as the fast one for a run, and so gets a sixth of the runs."""
    clock = threading.Condition()
    counts = {"fast:0": 0, "slow:0": 0}
    texts = 600
    left = texts

    def behave(device: str, ids: Sequence[Ids]) -> None:
        with clock:
            counts[device] += 1
            clock.notify_all()
            if device == "slow:0":
                until = counts["fast:0"] + 5
                # Or until nobody waits for anything else.
                clock.wait_for(lambda: counts["fast:0"] >= until or left <= len(ids), PATIENCE)

    async with running(minilm_repository, "slow", "fast") as (rig, client):
        rig.behave = behave

        async def ask(number: int) -> None:
            nonlocal left
            await client.embed(f"text {number} " + "x " * (number % 40))
            with clock:
                left -= 1
                clock.notify_all()

        await asyncio.gather(*(ask(number) for number in range(texts)))
        assert counts["fast:0"] >= 20
        assert counts["slow:0"] <= counts["fast:0"] / 5 + 1


async def test_whatever_fails_each_text_is_answered_once(minilm_repository: Path) -> None:
    """Three devices that raise, fall ill and hang at random, callers that leave: every answer is its own."""
    chance = random.Random(0)
    gates: list[Gate] = []
    lock = threading.Lock()
    stop = threading.Event()

    def behave(device: str, ids: Sequence[Ids]) -> None:
        with lock:
            what = 0.0 if stop.is_set() or (device == "a:0" and probe(ids)) else chance.random()
            if what > 0.97:
                gates.append(Gate())
                gate = gates[-1]
        if what > 0.97:
            gate.wait()
        elif what > 0.85:
            raise RuntimeError("at random")

    async with running(minilm_repository, "a", "b", "c", workers=2, engine=IMPATIENT) as (rig, client):
        rig.behave = behave
        outcomes: dict[grpc.StatusCode | str | None, int] = {}

        async def ask(number: int) -> None:
            texts = [
                f"call {number % 300} row {row} " + "x " * (number % 30) for row in range(1 + number % 4)
            ]
            call = client.embed(*texts)
            if number % 9 == 0:
                await asyncio.sleep(0)
                call.cancel()
            await asyncio.wait([call])
            outcome = "cancelled" if call.cancelled() else code(call)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if number % 10 == 0:
                with lock:
                    for gate in gates:
                        gate.open.set()

        for start in range(0, 2000, 100):
            await asyncio.gather(*(ask(number) for number in range(start, start + 100)))
        allowed = {None, "cancelled", grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL}
        assert set(outcomes) <= allowed and sum(outcomes.values()) == 2000
        assert outcomes[None] > 500
        stop.set()
        for gate in gates:
            gate.open.set()
        for device in ("a:0", "b:0", "c:0"):
            await rig.until_up(device, True)
        await asyncio.gather(*(client.embed(f"text {number}") for number in range(50)))
        assert rig.metric("trimtab_queued_texts") == rig.metric("trimtab_queued_tokens") == 0


async def test_hang_seconds_is_how_long_a_run_may_take(minilm_repository: Path) -> None:
    gate = Gate()
    async with running(minilm_repository, "one", engine=EngineSettings(hang_seconds=1e9)) as (rig, client):
        rig.behave = lambda device, ids: gate.wait()
        call = client.embed("takes long, and may")
        await gate.arrival()
        gate.open.set()
        await call
        assert rig.metric("trimtab_device_failures_total", device="one:0", reason="hung") == 0


async def test_watchers_hear_of_it(minilm_repository: Path) -> None:
    gate = Gate()
    async with running(minilm_repository, "one", engine=IMPATIENT) as (rig, client):
        watch = client.health.Watch(health_pb2.HealthCheckRequest(service=NAME))
        statuses = [(await watch.read()).status]
        rig.behave = lambda device, ids: gate.wait()
        await asyncio.wait([client.embed("a text")])
        statuses.append((await watch.read()).status)
        gate.open.set()
        statuses.append((await watch.read()).status)
        watch.cancel()
        response = health_pb2.HealthCheckResponse
        assert statuses == [response.SERVING, response.NOT_SERVING, response.SERVING]


@pytest.mark.parametrize(
    "result",
    [[np.zeros(384, np.float32)], None, np.zeros((1, 384), np.int64), np.zeros((2, 384), np.float32)],
    ids=["sequence", "nothing", "int64", "rows"],
)
async def test_a_worker_survives_whatever_a_session_brings(minilm_repository: Path, result: object) -> None:
    """One device with one worker: were it gone, nothing would be answered any more."""
    odd = threading.Event()

    async with running(minilm_repository, "one") as (rig, client):
        run = FakeSession.vectors

        def misbehave(session: FakeSession, ids: Sequence[Ids]) -> object:
            if odd.is_set() and not probe(ids):
                return result
            return run(session, ids)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeSession, "vectors", misbehave)
            odd.set()
            bad = client.embed("a text")
            await asyncio.wait([bad])
            assert code(bad) is grpc.StatusCode.INTERNAL
            odd.clear()
            await client.embed("the next one")
        assert rig.metric("trimtab_device_up", device="one:0") == 1


async def test_a_worker_survives_what_is_no_exception(minilm_repository: Path) -> None:
    """As a panic of a library's."""

    def behave(device: str, ids: Sequence[Ids]) -> None:
        if any(len(each) == 50 for each in ids):
            raise SystemExit

    async with running(minilm_repository, "one") as (rig, client):
        rig.behave = behave
        bad = client.embed("a " * 47 + "a")
        await asyncio.wait([bad])
        assert code(bad) is grpc.StatusCode.INTERNAL
        await client.embed("the next one")
