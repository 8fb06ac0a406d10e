"""Policies plan and look in the order of their list, and only those that do either are asked."""

import contextlib
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.server.calls import call
from trimtab.artifacts.manifest import Prompts
from trimtab.errors import FailedPrecondition, InvalidArgument
from trimtab.values.column import Column
from trimtab_server.callers.call import Call
from trimtab_server.catalog.encoder import RequestedOutput, ServedOutput
from trimtab_server.config import LimitSettings
from trimtab_server.outputs.dense import DenseKind
from trimtab_server.spaces.route import Vectors
from trimtab_server.tasks.embed import Embedder
from trimtab_server.tasks.pipeline import Pipeline
from trimtab_server.tasks.plan import EmbedRequest, Plan, Policy


class Noted(Policy):
    """Notes when it was asked, of what, and makes the request's group longer."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def plan(self, call: Call, plan: Plan) -> Plan:
        self.notes.append(f"{self.name} plans {plan.request.group}")
        request = msgspec.structs.replace(plan.request, group=plan.request.group + self.name)
        return msgspec.structs.replace(plan, request=request)


class Looking(Noted):
    async def look(self, call: Call, plan: Plan, vectors: Vectors) -> Plan:
        self.notes.append(f"{self.name} looks at {plan.request.group}")
        if self.name == "refuses":
            raise FailedPrecondition("no")
        return plan


class World:
    """Repository, pipeline and metrics in one, with one encoder of two dimensions."""

    def __init__(self) -> None:
        self.counted: list[str] = []
        self.users = 0
        self.adapters = SimpleNamespace(retire=None)
        own: Any = SimpleNamespace(
            hops=(), space="own", dimensions=2, normalized=False, int8_limit=None, names=[]
        )
        manifest = SimpleNamespace(max_tokens=8, prompts=Prompts())
        model = SimpleNamespace(variant="fp32", most_bytes=lambda wanted, items, units: 8 * items)
        output = RequestedOutput(ServedOutput("dense", DenseKind(), own, ("dense",)), own)
        reader = SimpleNamespace(
            form="text", size=len, by_role=False, in_role=lambda texts, role, prompts: texts
        )
        self.encoder = SimpleNamespace(
            name="e", version=1, manifest=manifest, prompts=manifest.prompts, model=model, default=output,
            reader=reader, mapped="dense",
        )  # fmt: skip

    def find(self, caller: object, name: str, version: str = "") -> Any:
        return self.encoder

    def hold(self, encoder: object) -> None:
        self.users += 1

    def release(self, encoder: object) -> None:
        self.users -= 1

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.counted.append(name)


class Piped(Pipeline):
    """Computes nothing: its vectors are made up."""

    async def admit(self, *of: Any, **more: Any) -> Any:
        return contextlib.nullcontext()

    async def compute(self, encoder: Any, call: Call, texts: Any, *of: Any) -> Any:
        result = {"dense": Column(np.ones((len(texts), 2), np.float32))}
        return SimpleNamespace(computed=SimpleNamespace(result=result), counts=[1] * len(texts))

    def answered(self, *of: Any) -> Any:
        return None


def embedder(world: World, policies: list[Policy]) -> Embedder:
    every: Any = world
    return Embedder(Piped(LimitSettings(max_texts=2), every, every, every, every), policies)


async def test_policies_are_asked_in_their_order() -> None:
    world, notes = World(), list[str]()
    policies = [Noted("a", notes), Looking("b", notes), Policy(), Looking("c", notes)]
    await embedder(world, policies).embed(call(), EmbedRequest("e", "", ["a text"]))
    assert notes == ["a plans ", "b plans a", "c plans ab", "b looks at abc", "c looks at abc"]
    assert world.users == 0 and world.counted == ["began", "computed_by", "ended"]


async def test_what_a_policy_refuses_is_counted_and_let_go() -> None:
    world, notes = World(), list[str]()
    policies = [Looking("refuses", notes), Looking("after", notes)]
    with pytest.raises(FailedPrecondition):
        await embedder(world, policies).embed(call(), EmbedRequest("e", "", ["a text"]))
    assert notes == ["refuses plans ", "after plans refuses", "refuses looks at refusesafter"]
    assert world.users == 0 and world.counted == ["began", "ended", "failed"]


async def test_what_is_over_a_limit_comes_to_no_policy() -> None:
    world, notes = World(), list[str]()
    with pytest.raises(InvalidArgument):
        await embedder(world, [Noted("a", notes)]).embed(call(), EmbedRequest("e", "", ["a"] * 3))
    assert not notes and world.users == 0 and world.counted == ["failed"]
