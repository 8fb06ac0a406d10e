"""The engine knows no kind of output: what a runner gives comes to whoever asked for it, remembered, shared,
found by halves, and from another process."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tests.server import toy
from tests.server.models_made import Ids, payload
from tests.server.toy import POISON, PROGRAM, SPARSE
from trimtab.errors import InternalError
from trimtab.values.column import Column, gathered
from trimtab_server.engine import tickets
from trimtab_server.engine.batch import Model, Wanted
from trimtab_server.engine.engine import Engine
from trimtab_server.engine.fleet.devices import Device
from trimtab_server.engine.fleet.homes import Opening
from trimtab_server.engine.fleet.places import Place
from trimtab_server.engine.port import Computed, Turn
from trimtab_server.engine.queue.batcher import Batcher
from trimtab_server.engine.queue.sharing import Sharing
from trimtab_server.engine.tickets import Ticket
from trimtab_server.observing.metrics import Metrics

PATIENCE = 120.0
TURN = Turn("", "", "interactive", None)


def ids(*numbers: int) -> Ids:
    return np.array(numbers, np.int32)


TEXTS = [ids(5, 5, 7), ids(9), ids(3, 4, 3, 3), ids(1, 2)]


@dataclass
class Rig:
    engine: Engine
    model: Model
    runner: toy.Runner  # of devices on threads
    registry: CollectorRegistry

    async def ask(self, texts: list[Ids], wanted: Wanted = SPARSE) -> None:
        """Compute texts, and check that each is its own."""
        async with asyncio.timeout(PATIENCE):
            computed = await self.engine.compute(self.model, list(map(payload, texts)), wanted, TURN)
        assert sorted(computed.result) == sorted(wanted)
        for place, text in enumerate(texts):
            for name, values in toy.expected(text, wanted).items():
                column = computed.result[name]
                assert len(column) == len(texts) and column.values.dtype == values.dtype
                np.testing.assert_array_equal(column.item(place), values)

    def shared(self, how: str) -> float:
        labels = {"encoder": "toy", "version": "1", "how": how}
        return self.registry.get_sample_value("trimtab_shared_texts_total", labels) or 0.0


@asynccontextmanager
async def running(
    isolation: str, *, cache: int = 0, start: bool = True, idle: Callable[[], float] | None = None
) -> AsyncIterator[Rig]:
    """An engine with one device of one worker; without `start` the device takes nothing yet."""
    runner, registry, place = toy.Runner(), CollectorRegistry(), Place("cpu", 0, 1)
    opening = Opening(lambda model, place: runner, PROGRAM, foreign=False)
    device = Device(place, opening.home(place, isolated=isolation == "process"))
    sharing = Sharing(single_flight=True, across_tenants=False, cache_bytes=cache)
    engine = Engine(
        Batcher(4096, 64), sharing, [device], Metrics(registry),
        hang_seconds=PATIENCE, load_seconds=PATIENCE, serving=lambda up: None, idle=idle,
    )  # fmt: skip
    if start:
        engine.start()
    model = toy.model()
    await engine.load(model)
    runner.runs.clear()
    try:
        yield Rig(engine, model, runner, registry)
    finally:
        await asyncio.to_thread(engine.stop)


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_each_gets_what_it_wants(isolation: str) -> None:
    async with running(isolation) as rig:
        wants: list[Wanted] = [SPARSE, ("sums",), ("counts", "indices", "sums"), ("indices",)]
        await asyncio.gather(*(rig.ask(TEXTS, wanted) for wanted in wants))
        await asyncio.gather(*(rig.ask([text], wanted) for text in TEXTS for wanted in wants))


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_what_was_computed_is_remembered(isolation: str) -> None:
    async with running(isolation, cache=1 << 20) as rig:
        await rig.ask(TEXTS)
        await rig.ask([*TEXTS[1:], ids(8, 8)])
        assert rig.shared("cache") == len(TEXTS) - 1
        await rig.ask(TEXTS, ("sums",))
        assert rig.shared("cache") == len(TEXTS) - 1, "of what is wanted now nothing was computed"


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_what_is_asked_twice_at_once_is_computed_once(isolation: str) -> None:
    async with running(isolation) as rig:
        await rig.ask([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]])
        assert rig.shared("in_flight") == 2


async def test_a_run_gives_what_any_of_its_items_wants() -> None:
    async with running("thread", start=False) as rig:
        asked = [
            asyncio.create_task(rig.ask([TEXTS[0]])),
            asyncio.create_task(rig.ask([TEXTS[1]], ("sums",))),
        ]
        await asyncio.sleep(0)
        rig.engine.start()
        await asyncio.gather(*asked)
        assert rig.runner.runs == [(2, ("counts", "indices", "sums"))]


async def test_only_what_fails_alone_fails() -> None:
    async with running("thread", start=False) as rig:
        asked = [asyncio.create_task(rig.ask([text])) for text in (*TEXTS, ids(1, POISON, 1))]
        await asyncio.sleep(0)
        rig.engine.start()
        *good, bad = await asyncio.gather(*asked, return_exceptions=True)
        assert good == [None] * len(TEXTS) and isinstance(bad, InternalError)
        assert rig.runner.runs[0] == (5, SPARSE) and max(size for size, _ in rig.runner.runs[1:]) < 5


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_poison_among_others(isolation: str) -> None:
    async with running(isolation) as rig:
        asked = [rig.ask([text]) for text in (*TEXTS, ids(POISON))]
        *good, bad = await asyncio.gather(*asked, return_exceptions=True)
        assert good == [None] * len(TEXTS) and isinstance(bad, InternalError)


@pytest.mark.parametrize("large", [False, True])
async def test_large_results_are_put_together_on_a_thread(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, computed = [], Ticket.computed

    def noted(ticket: Ticket) -> Computed:
        threads.append(threading.current_thread() is threading.main_thread())
        return computed(ticket)

    monkeypatch.setattr(Ticket, "computed", noted)
    if large:
        monkeypatch.setattr(tickets, "INLINE_BYTES", 8)
    async with running("thread") as rig:
        await rig.ask(TEXTS)
        await rig.ask(TEXTS, ("sums",))
        await rig.ask(TEXTS[:1])
    assert threads == [not large, not large, True]


def test_items_that_stand_in_several_columns() -> None:
    one = Column(np.arange(6).reshape(3, 2))
    other = Column(np.arange(10, 14).reshape(2, 2))
    found = gathered([({"a": one}, 2), ({"a": other}, 0), ({"a": one}, 0)], ["a"])["a"]
    assert found.offsets is None and found.values.tolist() == [[4, 5], [10, 11], [0, 1]]
    several = Column(np.arange(5), np.array([0, 2, 2, 5]))
    found = gathered([({"a": several}, place) for place in (2, 1, 0)], ["a"])["a"]
    assert [found.item(place).tolist() for place in range(len(found))] == [[2, 3, 4], [], [0, 1]]
    alone = gathered([({"a": several}, 2)], ["a"])["a"]
    assert alone.item(0).tolist() == [2, 3, 4] and alone.nbytes == 5 * 8
