"""Adapters applied to what comes from a device together."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from trimtab.errors import InternalError
from trimtab_server.spaces import applying
from trimtab_server.spaces.adapters import Route
from trimtab_server.spaces.applying import Applier


@dataclass(eq=False)
class Hop:
    """An adapter that adds a number, and 100 for the group "more"."""

    add: float
    states_width: int = 0
    row_seconds: float = 1e-6
    runs: list[int] = field(default_factory=list)
    broken: bool = False

    def run(self, rows: np.ndarray, groups: Sequence[str]) -> np.ndarray:
        assert len(rows) == len(groups)
        self.runs.append(len(rows))
        if self.broken:
            raise InternalError("adapter a/b failed")
        more = np.array([100.0 if group == "more" else 0.0 for group in groups], np.float32)
        return rows + np.float32(self.add) + more[:, None]


def route(*hops: Hop) -> Route:
    return Route("there", hops, 4, True, None)


def rows(*values: float, width: int = 4) -> np.ndarray:
    return np.array([[value] * width for value in values], np.float32)


async def test_what_asks_together_runs_together() -> None:
    applier, first, second = Applier(), Hop(1), Hop(10)
    asked = [(rows(n, n + 0.5), "more" if n % 2 else "") for n in range(20)]
    answers = await asyncio.gather(
        *(applier.apply(route(first, second), each, 4, group) for each, group in asked)
    )
    assert first.runs == second.runs == [40]
    for (each, group), got in zip(asked, answers, strict=True):
        np.testing.assert_allclose(got, each + 11 + (200 if group else 0))
    alone = await applier.apply(route(first), rows(3), 4, "")
    np.testing.assert_array_equal(alone, rows(4))
    assert first.runs == [40, 1]


async def test_routes_run_each_for_itself_and_own_spaces_not_at_all() -> None:
    applier, one, other = Applier(), Hop(1), Hop(2, states_width=3)
    wide = rows(5, width=7)
    own, by_one, by_other = await asyncio.gather(
        applier.apply(route(), wide, 4, ""),
        applier.apply(route(one), wide, 4, ""),
        applier.apply(route(other), wide, 4, ""),
    )
    assert own.shape == (1, 4) and by_one.shape == (1, 4)
    assert by_other.shape == (1, 7), "an adapter of inner states gets them"
    assert one.runs == other.runs == [1]


async def test_long_runs_leave_the_event_loop() -> None:
    applier, slow = Applier(), Hop(1, row_seconds=applying.INLINE_SECONDS)
    got = await asyncio.gather(*(applier.apply(route(slow), rows(n), 4, "") for n in range(3)))
    np.testing.assert_array_equal(np.concatenate(got), rows(1, 2, 3))


@pytest.mark.parametrize("row_seconds", [1e-6, 1.0])
async def test_each_request_gets_its_own_error(row_seconds: float) -> None:
    applier, broken, whole = Applier(), Hop(1, broken=True, row_seconds=row_seconds), Hop(1)
    failed = await asyncio.gather(
        applier.apply(route(broken), rows(1), 4, ""),
        applier.apply(route(broken), rows(2), 4, ""),
        applier.apply(route(whole), rows(3), 4, ""),
        return_exceptions=True,
    )
    assert isinstance(failed[0], InternalError) and isinstance(failed[1], InternalError)
    assert failed[0] is not failed[1]
    np.testing.assert_array_equal(failed[2], rows(4))


async def test_who_has_left_is_not_computed() -> None:
    applier, hop = Applier(), Hop(1)
    leaving = asyncio.create_task(applier.apply(route(hop), rows(1, 2, 3), 4, ""))
    staying = asyncio.create_task(applier.apply(route(hop), rows(4), 4, ""))
    await asyncio.sleep(0)
    leaving.cancel()
    np.testing.assert_array_equal(await staying, rows(5))
    assert leaving.cancelled() or leaving.cancelling()
