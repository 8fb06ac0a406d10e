"""Adapters applied to what comes from a device together."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from trimtab.errors import FailedPrecondition, InternalError
from trimtab.values.column import Column
from trimtab_server.spaces.applying import Applier
from trimtab_server.spaces.route import Route

PATIENCE = 60.0


@dataclass(eq=False)
class Hop:
    """An adapter that adds a number, and 100 for the group "more"."""

    add: float
    states_width: int = 0
    row_seconds: float = 1e-6
    runs: list[int] = field(default_factory=list)
    broken: bool = False
    refuses: float | None = None
    gate: threading.Event | None = None
    ended: bool = False
    name: str = "a/b"

    def end(self) -> None:
        self.ended = True

    def run(self, rows: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        assert len(rows) == len(groups)
        self.runs.append(len(rows))
        if self.gate is not None:
            self.gate.wait(PATIENCE)
        if self.broken or (self.refuses is not None and self.refuses in rows):
            raise InternalError("adapter a/b failed")
        more = np.array([100.0 if group == "more" else 0.0 for group in groups], np.float32)
        return rows + np.float32(self.add) + more[:, None]


def route(*hops: Hop) -> Route:
    return Route("there", hops, 4, None, True, None, "a", 1)


def rows(*values: float, width: int = 4) -> np.ndarray:
    return np.array([[value] * width for value in values], np.float32)


def given(wide: np.ndarray) -> dict[str, Column]:
    """What a graph gives: four components, and behind them inner states."""
    return {"dense": Column(wide[:, :4]), "states": Column(wide[:, 4:])}


async def test_what_asks_together_runs_together() -> None:
    applier, first, second = Applier(), Hop(1), Hop(10)
    asked = [(rows(n, n + 0.5), "more" if n % 2 else "") for n in range(20)]
    answers = await asyncio.gather(
        *(applier.apply(route(first, second), given(each), "dense", group) for each, group in asked)
    )
    assert first.runs == second.runs == [40]
    for (each, group), got in zip(asked, answers, strict=True):
        np.testing.assert_allclose(got, each + 11 + (200 if group else 0))
    alone = await applier.apply(route(first), given(rows(3)), "dense", "")
    np.testing.assert_array_equal(alone, rows(4))
    assert first.runs == [40, 1]


async def test_routes_run_each_for_itself_and_own_spaces_not_at_all() -> None:
    applier, one, other = Applier(), Hop(1), Hop(2, states_width=3)
    wide = rows(5, width=7)
    own, by_one, by_other = await asyncio.gather(
        applier.apply(route(), given(wide), "dense", ""),
        applier.apply(route(one), given(wide), "dense", ""),
        applier.apply(route(other), given(wide), "dense", ""),
    )
    assert own.shape == (1, 4) and by_one.shape == (1, 4)
    assert by_other.shape == (1, 7), "an adapter of inner states gets them"
    assert one.runs == other.runs == [1]


async def test_what_comes_while_a_route_runs_is_its_next_run() -> None:
    applier, gate = Applier(), threading.Event()
    slow = Hop(1, gate=gate)
    first = asyncio.create_task(applier.apply(route(slow), given(rows(0)), "dense", ""))
    async with asyncio.timeout(PATIENCE):
        while not slow.runs:
            await asyncio.sleep(0.001)
    later = [asyncio.create_task(applier.apply(route(slow), given(rows(n)), "dense", "")) for n in (1, 2)]
    other = Hop(5)
    np.testing.assert_array_equal(await applier.apply(route(other), given(rows(0)), "dense", ""), rows(5))
    gate.set()
    np.testing.assert_array_equal(np.concatenate(await asyncio.gather(first, *later)), rows(1, 2, 3))
    assert slow.runs == [1, 2]


async def test_an_adapter_that_hangs_is_retired_and_holds_up_no_other() -> None:
    retired: list[tuple[object, str]] = []
    gate = threading.Event()
    applier = Applier(lambda loaded, why: retired.append((loaded, why)), hang_seconds=0.2)
    hanging, whole = Hop(1, gate=gate), Hop(1)
    bad = asyncio.create_task(applier.apply(route(whole, hanging), given(rows(1)), "dense", ""))
    np.testing.assert_array_equal(await applier.apply(route(whole), given(rows(2)), "dense", ""), rows(3))
    with pytest.raises(FailedPrecondition, match=r"a/b is no longer used: .* made no progress for 0\.2 s"):
        await bad
    gate.set()
    assert [loaded for loaded, _ in retired] == [hanging] and hanging.ended


async def test_only_what_fails_alone_fails() -> None:
    applier, picky = Applier(), Hop(1, refuses=7.0)
    good, bad, other = await asyncio.gather(
        applier.apply(route(picky), given(rows(1)), "dense", ""),
        applier.apply(route(picky), given(rows(7)), "dense", ""),
        applier.apply(route(picky), given(rows(2)), "dense", ""),
        return_exceptions=True,
    )
    np.testing.assert_array_equal(np.concatenate([good, other]), rows(2, 3))
    assert isinstance(bad, InternalError)


async def test_each_request_gets_its_own_error() -> None:
    applier, broken, whole = Applier(), Hop(1, broken=True), Hop(1)
    failed = await asyncio.gather(
        applier.apply(route(broken), given(rows(1)), "dense", ""),
        applier.apply(route(broken), given(rows(2)), "dense", ""),
        applier.apply(route(whole), given(rows(3)), "dense", ""),
        return_exceptions=True,
    )
    assert isinstance(failed[0], InternalError) and isinstance(failed[1], InternalError)
    assert failed[0] is not failed[1]
    np.testing.assert_array_equal(failed[2], rows(4))


async def test_who_has_left_is_not_computed() -> None:
    applier, hop = Applier(), Hop(1)
    leaving = asyncio.create_task(applier.apply(route(hop), given(rows(1, 2, 3)), "dense", ""))
    staying = asyncio.create_task(applier.apply(route(hop), given(rows(4)), "dense", ""))
    await asyncio.sleep(0)
    leaving.cancel()
    np.testing.assert_array_equal(await staying, rows(5))
    assert leaving.cancelled() or leaving.cancelling()
