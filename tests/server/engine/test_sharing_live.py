"""Texts that are alike are computed once, behind the real server: and every caller gets the vector."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from tests.server.misbehaving import Client, Gate, Rig, running
from tests.server.models_made import Ids
from trimtab_server.callers.access import SERVER
from trimtab_server.config import SharingSettings

NAME = "all-minilm-l6-v2"


def shared(rig: Rig, how: str) -> float:
    return rig.metric("trimtab_shared_texts_total", encoder=NAME, version="1", how=how)


def texts(rig: Rig, length: int) -> int:
    """How many texts of so many tokens were run."""
    return sum(lengths.count(length) for _, lengths in rig.runs)


@asynccontextmanager
async def busy(
    repository: Path, sharing: SharingSettings | None = None
) -> AsyncIterator[tuple[Rig, Client, Gate]]:
    """A server whose only worker is kept busy by a text of its own, until the gate opens."""
    async with running(repository, "one", sharing=sharing) as (rig, client):
        gate = Gate()
        rig.behave = lambda device, ids: gate.wait()
        first = client.embed("the first text, which keeps the device busy")
        await gate.arrival()
        try:
            yield rig, client, gate
        finally:
            gate.open.set()
            await first


async def test_a_text_that_waits_is_computed_once_for_all(minilm_repository: Path) -> None:
    async with busy(minilm_repository) as (rig, client, gate):
        calls = [client.embed("same", f"own {number}", "same") for number in range(20)]
        await rig.until(lambda: shared(rig, "in_flight") == 39)
        assert rig.metric("trimtab_queued_texts") == 21
        gate.open.set()
        await asyncio.gather(*calls)
        assert texts(rig, 3) == 1


async def test_a_text_that_runs_is_joined(minilm_repository: Path) -> None:
    async with busy(minilm_repository) as (rig, client, gate):
        call = client.embed("the first text, which keeps the device busy")
        await rig.until(lambda: shared(rig, "in_flight") == 1)
        assert rig.metric("trimtab_queued_texts") == 0
        gate.open.set()
        await call
        assert len(rig.runs) == 1


async def test_who_leaves_takes_nothing_from_the_others(minilm_repository: Path) -> None:
    async with busy(minilm_repository) as (rig, client, gate):
        calls = [client.embed("same") for _ in range(3)]
        short = client.embed("same", timeout=0.1)  # its deadline is not the others'
        await rig.until(lambda: shared(rig, "in_flight") == 3)
        calls[0].cancel()
        await asyncio.wait([calls[0], short])
        error = short.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert rig.metric("trimtab_queued_texts") == 1
        gate.open.set()
        await asyncio.gather(*calls[1:])
        assert texts(rig, 3) == 1


async def test_what_nobody_waits_for_any_more_is_not_computed(minilm_repository: Path) -> None:
    async with busy(minilm_repository) as (rig, client, gate):
        calls = [client.embed("same") for _ in range(3)]
        await rig.until(lambda: shared(rig, "in_flight") == 2)
        for call in calls:
            call.cancel()
        await rig.until(lambda: rig.metric("trimtab_queued_texts") == 0)
        gate.open.set()
        await client.embed("another text")
        assert texts(rig, 3) == 0


async def test_poison_is_poison_for_all_who_asked_for_it(minilm_repository: Path) -> None:
    def behave(device: str, ids: Sequence[Ids]) -> None:
        if any(len(each) == 3 for each in ids):
            raise RuntimeError("poison")

    async with busy(minilm_repository) as (rig, client, gate):
        bad = [client.embed("a good text", "same") for _ in range(3)]
        good = client.embed("a good text")
        await rig.until(lambda: shared(rig, "in_flight") == 5)
        rig.behave = behave
        gate.open.set()
        await asyncio.wait(bad)
        for call in bad:
            error = call.exception()
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.INTERNAL and "texts[1]" in str(error.details())
        await good


async def test_single_flight_can_be_turned_off(minilm_repository: Path) -> None:
    async with busy(minilm_repository, SharingSettings(single_flight=False)) as (rig, client, gate):
        calls = [client.embed("same") for _ in range(5)]
        await rig.until(lambda: rig.metric("trimtab_queued_texts") == 5)
        gate.open.set()
        await asyncio.gather(*calls)
        assert texts(rig, 3) == 5 and shared(rig, "in_flight") == 0


async def test_tenants_share_only_where_the_configuration_says_so(minilm_repository: Path) -> None:
    for across in (False, True):
        sharing = SharingSettings(across_tenants=across, cache_bytes=1 << 20)
        async with busy(minilm_repository, sharing) as (rig, client, gate):
            calls = [client.embed("same", tenant=tenant) for tenant in "xyxy"]
            await rig.until(lambda: shared(rig, "in_flight") == (3 if across else 2))  # noqa: B023
            gate.open.set()
            await asyncio.gather(*calls)
            await client.embed("same", tenant="z")
            assert texts(rig, 3) == (1 if across else 3)


async def test_a_repeat_is_answered_from_the_cache(minilm_repository: Path) -> None:
    async with running(minilm_repository, "one", sharing=SharingSettings(cache_bytes=1 << 20)) as (
        rig,
        client,
    ):
        await client.embed("one", "two words")
        size = rig.metric("trimtab_cache_bytes")
        assert 2 * 384 * 4 < size < 1 << 20
        before = len(rig.runs)
        await client.embed("two words", "one", "one")
        assert len(rig.runs) == before and shared(rig, "cache") == 3
        await client.embed("one", "a third text")  # half of it remembered
        assert shared(rig, "cache") == 4 and len(rig.runs) == before + 1
        assert rig.app is not None
        await rig.app.repository.unload(SERVER, NAME)
        assert rig.metric("trimtab_cache_bytes") == 0
        await rig.app.repository.load(SERVER, NAME)
        await client.embed("one")
        assert shared(rig, "cache") == 4, "another load is another model"


async def test_the_cache_is_off_unless_it_is_asked_for_and_bounded(minilm_repository: Path) -> None:
    async with running(minilm_repository, "one") as (rig, client):
        await client.embed("one")
        await client.embed("one")
        assert shared(rig, "cache") == 0 and rig.metric("trimtab_cache_bytes") == 0
    async with running(minilm_repository, "one", sharing=SharingSettings(cache_bytes=10_000)) as (
        rig,
        client,
    ):
        for number in range(20):
            await client.embed(f"text {number}")
        assert 5_000 < rig.metric("trimtab_cache_bytes") <= 10_000
        before = len(rig.runs)
        await client.embed("text 19")
        assert len(rig.runs) == before
        await client.embed("text 0")
        assert len(rig.runs) == before + 1
