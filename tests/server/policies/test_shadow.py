"""What a shadow is shown, by whose rights, and what is left of a version that is served no more."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tests.server.calls import call
from trimtab.errors import NotFound
from trimtab.values.column import Column
from trimtab_server.callers.access import ANYONE, Caller
from trimtab_server.engine.port import Pressure
from trimtab_server.policies.comparing import FEWEST
from trimtab_server.policies.shadow import Shadow, ShadowMetrics
from trimtab_server.tasks.plan import EmbedRequest, Plan

WIDTH = 8


@dataclass(eq=False)
class Version:
    """As much of an encoder as a shadow looks at."""

    name: str
    version: int
    manifest: Any = field(
        default_factory=lambda: SimpleNamespace(
            dimensions=WIDTH, prompts=SimpleNamespace(query="", passage="")
        )
    )
    model: Any = None
    number: int = 1
    reader: Any = field(default_factory=lambda: SimpleNamespace(in_role=lambda items, role, prompts: items))
    vectors: str = "dense"


class World:
    """Repository, tokenizer and engine in one: versions 1 and 2 of `a` and of `b`, the second a shadow."""

    def __init__(self) -> None:
        self.served: dict[tuple[str, int], Any] = {
            (name, version): Version(name, version) for name in "ab" for version in (1, 2)
        }
        self.how: list[str] = []
        self.registry = CollectorRegistry()
        every: Any = self
        self.shadow_ = Shadow(every, every, every, every, ShadowMetrics(self.registry))

    @contextmanager
    def use(self, caller: Caller, name: str, version: str) -> Iterator[Any]:
        caller.check_encoder(name)
        if (name, int(version)) not in self.served:
            raise NotFound("it is gone")
        yield self.served[name, int(version)]

    def versions(self, name: str) -> list[int]:
        return [1, 2]

    def shadow(self, name: str, served: Sequence[int], answered: int, tenant: str, text: str) -> int | None:
        return 2 if answered == 1 else None

    def pressure(self) -> Pressure:
        return Pressure()

    async def read(self, reader: object, texts: Sequence[str], how: str, flow: object) -> Sequence[str]:
        self.how.append(how)
        return texts

    async def compute(self, work: Any) -> Any:
        return SimpleNamespace(result={"dense": Column(np.stack(list(map(vector, work.payloads))))})

    async def see(
        self,
        name: str,
        texts: Sequence[str],
        rows: np.ndarray | None = None,
        caller: Caller = ANYONE,
        **more: Any,
    ) -> None:
        request = EmbedRequest(name, "", texts, **more)
        answered = np.stack([vector(text) for text in texts]) if rows is None else rows
        version = self.served[name, 1]
        await self.shadow_.look(call(caller), Plan(request, version, version, ()), answered)

    def outcomes(self, name: str) -> dict[str, float]:
        return {
            sample.labels["outcome"]: sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "trimtab_shadow_texts_total" and sample.labels["encoder"] == name
        }

    async def until(self, name: str, texts: int) -> None:
        async with asyncio.timeout(120):
            while sum(self.outcomes(name).values()) < texts:
                await asyncio.sleep(0)


def vector(text: str) -> np.ndarray:
    return np.random.default_rng(list(text.encode())).standard_normal(WIDTH).astype(np.float32)


@pytest.fixture
async def world() -> Iterator[World]:
    world = World()
    world.shadow_.start()
    yield world
    await world.shadow_.stop()


async def test_it_works_by_nobodys_rights(world: World) -> None:
    for name in "ab":
        await world.see(name, [f"a text for {name}"], caller=Caller(f"user of {name}", (name,)))
        await world.until(name, 1)
    assert world.outcomes("a") == world.outcomes("b") == {"compared": 1}


async def test_a_text_is_cut_as_it_was_for_the_answer(world: World) -> None:
    for text, truncate in (("one", "start"), ("two", "end"), ("three", "none")):
        await world.see("a", [text], truncate=truncate)
    await world.until("a", 3)
    assert world.how == ["start", "end", "end"]


async def test_an_answer_that_is_no_number_is_compared_with_nothing(world: World) -> None:
    await world.see("a", ["text"], np.full((1, WIDTH), np.nan, np.float32))
    await world.until("a", 1)
    assert world.outcomes("a") == {"failed": 1}


@pytest.mark.parametrize("gone", [1, 2])
async def test_of_a_version_that_is_gone_nothing_is_left(world: World, gone: int) -> None:
    texts = [f"text {number}" for number in range(FEWEST + 2)]
    for name in "ab":
        await world.see(name, texts)
        await world.until(name, len(texts))
    await world.see("a", ["a late one"])
    del world.served["a", gone]
    world.shadow_.forget("a", gone)
    await world.see("b", ["a late one"])
    await world.until("b", len(texts) + 1)
    left = world.outcomes("a")
    assert left == ({} if gone == 1 else {"failed": 1})
    assert world.outcomes("b")["compared"] == len(texts) + 1
    world.shadow_.forget("a", 1)  # the version that its texts were answered by
    assert not [
        sample
        for metric in world.registry.collect()
        for sample in metric.samples
        if sample.labels.get("encoder") == "a"
    ]
