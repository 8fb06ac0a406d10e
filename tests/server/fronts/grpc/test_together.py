"""Calls that come close behind each other, by passes of the loop and a clock of its own."""

import asyncio

from trimtab_server.fronts.grpc.together import MOST, MOST_SECONDS, PASSES, Together


class Calls:
    """Calls whose messages are there, and the order of events: numbers of calls, and passes of the loop."""

    def __init__(self) -> None:
        self.now = 100.0
        self.together = Together(lambda: self.now)
        self.done: list[int] = []

    def begin(self, number: int) -> "asyncio.Task[None]":
        """The message of a call is there."""

        async def call() -> None:
            await self.together.wait(number)
            self.done.append(number)

        return asyncio.create_task(call())


async def passes(count: int) -> None:
    """So many passes of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_call_that_nobody_follows_does_not_wait() -> None:
    calls = Calls()
    for _ in range(3):
        number = calls.together.came()
        calls.begin(number)
        await passes(1)
        assert calls.done[-1] == number


async def test_a_call_waits_for_those_behind_it_and_they_go_on_in_one_pass() -> None:
    calls = Calls()
    first, second = calls.together.came(), calls.together.came()
    calls.begin(first)
    await passes(2)
    calls.begin(second)
    await passes(1)
    assert calls.done == []
    await passes(2 * PASSES)
    assert calls.done == [first, second]


async def test_they_wait_as_long_as_others_keep_coming() -> None:
    calls = Calls()
    numbers = [calls.together.came() for _ in range(2)]
    calls.begin(numbers[0])
    for _ in range(MOST - 2):
        await passes(PASSES - 1)
        numbers.append(calls.together.came())
        calls.begin(numbers[-1])
        assert calls.done == []
    await passes(2 * PASSES)
    assert sorted([*calls.done, numbers[1]]) == numbers  # the second one's message never came


async def test_no_more_than_so_many_go_on_together() -> None:
    calls = Calls()
    numbers = [calls.together.came() for _ in range(MOST + 1)]
    for number in numbers[:MOST]:
        calls.begin(number)
    await passes(3)
    assert calls.done == numbers[:MOST]


async def test_nobody_waits_longer_than_allowed() -> None:
    calls = Calls()
    first = calls.together.came()
    calls.together.came()
    calls.begin(first)
    for _ in range(3 * PASSES):
        await passes(1)
        calls.together.came()
    assert calls.done == []
    calls.now += 2 * MOST_SECONDS
    await passes(3)
    assert calls.done == [first]


async def test_a_call_that_is_cancelled_leaves_the_others_alone() -> None:
    calls = Calls()
    numbers = [calls.together.came() for _ in range(3)]
    tasks = [calls.begin(number) for number in numbers]
    await passes(2)
    tasks[1].cancel()
    await passes(3 * PASSES)
    assert calls.done == [numbers[0], numbers[2]]
    assert tasks[1].cancelled()
