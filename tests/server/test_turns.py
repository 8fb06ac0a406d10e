"""Turns on the event loop: each caller's pieces in order, nobody starves, and small calls wait for little."""

import asyncio
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from trimtab_server.turns import PASS_SECONDS, REMEMBERED, SMALL_SHARE, Flow, TurnQueue, Turns

FLOWS = st.builds(Flow, st.integers(0, 5), st.booleans())
SECONDS = st.floats(1e-5, 0.01)


@given(st.lists(st.tuples(FLOWS, SECONDS) | st.none(), max_size=200))
def test_nothing_is_lost_or_comes_twice_and_each_caller_keeps_its_order(
    steps: list[tuple[Flow, float] | None],
) -> None:
    """None: somebody has a turn."""
    line: TurnQueue[int] = TurnQueue()
    put, popped = defaultdict(list), defaultdict(list)
    took: dict[int, float] = {}

    def turn() -> None:
        flow, number = line.pop()
        popped[flow].append(number)
        line.took(flow, took[number])

    for number, step in enumerate(steps):
        if step is None:
            if line:
                turn()
            continue
        flow, took[number] = step
        line.put(flow, number)
        put[flow].append(number)
    while line:
        turn()
    assert popped == put


@given(
    st.lists(st.lists(SECONDS, min_size=1, max_size=30), min_size=1, max_size=8),
    st.integers(0, 60),
    st.booleans(),
)
def test_a_newcomer_waits_for_one_piece_of_each_other_caller_at_most(
    backlogs: list[list[float]], before: int, small: bool
) -> None:
    line: TurnQueue[float] = TurnQueue()
    for caller, pieces in enumerate(backlogs):
        for seconds in pieces:
            line.put(Flow(caller, False), seconds)
    for _ in range(min(before, sum(map(len, backlogs)) - 1)):
        flow, seconds = line.pop()
        line.took(flow, seconds)
    newcomer = Flow("newcomer", small)
    line.put(newcomer, 0.0)
    served: list[Flow] = []
    while (popped := line.pop())[0] != newcomer:
        served.append(popped[0])
        line.took(*popped)
    assert len(served) == len(set(served))


@given(st.lists(SECONDS, min_size=2, max_size=2), st.integers(50, 300))
def test_two_who_always_have_work_get_the_same_time(pieces: list[float], turns: int) -> None:
    line: TurnQueue[float] = TurnQueue()
    had = [0.0, 0.0]
    for caller in (0, 1):
        line.put(Flow(caller, False), pieces[caller])
    for _ in range(turns):
        flow, seconds = line.pop()
        line.put(flow, seconds)
        line.took(flow, seconds)
        had[int(str(flow.caller))] += seconds
    assert abs(had[0] - had[1]) <= 2 * max(pieces)


def test_who_has_had_less_goes_before_what_waits() -> None:
    line: TurnQueue[str] = TurnQueue()
    large, other = Flow("a", False), Flow("b", False)
    assert line.is_next(large)
    for _ in range(3):
        line.put(large, "piece")
    line.took(line.pop()[0], 0.005)
    assert line.is_next(other) and not line.is_next(large)
    line.begin(other)
    line.took(other, 0.1)
    assert not line.is_next(other)  # it has had more now
    assert line.pop()[0] == large


def test_callers_who_come_and_go_are_forgotten() -> None:
    line: TurnQueue[int] = TurnQueue()
    waiting = Flow("waiting", False)
    line.put(waiting, 1)
    for number in range(10 * REMEMBERED):
        line.begin(Flow(number, True))
        line.took(Flow(number, True), 0.0)
    assert len(line._accounts) <= 2 * REMEMBERED
    assert line.pop() == (waiting, 1)


async def test_large_work_is_spread_over_passes_of_the_loop_and_small_work_is_not_behind_it() -> None:
    now = 0.0
    turns = Turns(lambda: now)
    order: list[str] = []

    def work(name: str, seconds: float) -> str:
        nonlocal now
        now += seconds
        order.append(name)
        return name

    async def call(name: str, *, small: bool, seconds: float) -> str:
        return await turns.do(Flow(name[0], small), work, name, seconds)

    calls = [asyncio.ensure_future(call(f"a{n}", small=False, seconds=PASS_SECONDS)) for n in range(4)]
    await asyncio.sleep(0)
    assert order == ["a0"]
    calls.append(asyncio.ensure_future(call("b0", small=True, seconds=PASS_SECONDS / 10)))
    assert await asyncio.gather(*calls) == ["a0", "a1", "a2", "a3", "b0"]
    assert order.index("b0") <= 2


async def test_while_calls_arrive_large_work_has_no_more_than_its_share() -> None:
    now = 0.0
    turns = Turns(lambda: now)
    flow, done = Flow("a", False), 0

    async def piece() -> None:
        nonlocal done
        await turns.wait(flow, 0.001)
        done += 1

    pieces = [asyncio.ensure_future(piece()) for _ in range(20)]
    await asyncio.sleep(0)
    assert done == 1  # nobody had arrived
    for arrived in range(100):
        turns.arrived()
        now += 0.0005  # what it took
        await asyncio.sleep(0)
        assert done <= 2 + (arrived + 1) * 0.0005 / (SMALL_SHARE * 0.001)
    assert done >= 3  # it has its share all the same
    await asyncio.gather(*pieces)  # and all of the time when nobody arrives any more


async def test_a_turn_that_is_cancelled_or_raises_keeps_nobody_waiting() -> None:
    turns = Turns()
    flow = Flow("a", False)

    def fail() -> None:
        raise RuntimeError("at work")

    async def long() -> None:
        await turns.do(flow, sum, range(200_000))

    first = asyncio.ensure_future(long())
    gone = [asyncio.ensure_future(long()) for _ in range(3)]
    failing = asyncio.ensure_future(turns.do(flow, fail))
    last = asyncio.ensure_future(turns.do(flow, str, "done"))
    await asyncio.sleep(0)
    for each in gone:
        each.cancel()
    done = await asyncio.gather(first, failing, last, *gone, return_exceptions=True)
    assert isinstance(done[1], RuntimeError) and done[2] == "done"
    assert all(isinstance(each, asyncio.CancelledError) for each in done[3:])
