"""The margin under a fake clock: a queue at ten times its capacity, on a device that stalls now and then."""

import random
from collections import deque
from dataclasses import dataclass

import pytest

from trimtab_server.engine.admission.margin import LEAST, MOST, START, Margin

TEXT, BATCH, DEADLINE = 0.01, 10, 1.0  # seconds of a text, texts of a batch, seconds until it is too late


class Fixed(Margin):
    """Half of the time, whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.part = 0.5

    def ended(self, admitted: float, needed: float, deadline: float, now: float) -> None:
        pass


@dataclass
class Outcome:
    """Of the second half of a simulation."""

    late: int = 0
    in_time: int = 0
    seconds: float = 0.0


def simulate(margin: Margin, *, stalls: bool, seconds: float = 120.0, times: float = 10.0) -> Outcome:
    """Texts arrive at random, at `times` the capacity; a stall makes runs take six times as long."""
    rng, outcome = random.Random(1), Outcome(seconds=seconds / 2)
    now, pace, busy_until, predicted_end = 0.0, 1.0, 0.0, 0.0
    waiting: deque[tuple[float, float]] = deque()  # when it was admitted, and what was predicted
    running: list[tuple[float, float]] = []
    stall, stall_ends = (3.0 if stalls else float("inf")), 0.0
    arrival = 0.0
    while now < seconds:
        now = min(arrival, busy_until if running else float("inf"))
        if running and now == busy_until:
            for admitted, needed in running:
                late = now > admitted + DEADLINE
                margin.ended(admitted, needed, admitted + DEADLINE, now)
                if now > seconds / 2:
                    outcome.late += late
                    outcome.in_time += not late
            running = []
        if now >= stall:
            stall_ends, stall = now + 0.5, now + rng.expovariate(1 / 4)
        if now == arrival:
            arrival += rng.expovariate(times / TEXT)
            # The run that is under way is believed to take as long as the last ones.
            needed = len(waiting) * TEXT * pace + (max(0.0, predicted_end - now) if running else 0.0)
            if margin.allows(needed, DEADLINE):
                waiting.append((now, needed))
        if not running and waiting:
            while waiting and waiting[0][0] + DEADLINE < now:  # expired in the queue
                admitted, needed = waiting.popleft()
                margin.ended(admitted, needed, admitted + DEADLINE, now)
                outcome.late += now > seconds / 2
            running = [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]
            slow = 6.0 if now < stall_ends else 1.0
            pace += 0.1 * (slow - pace)
            predicted_end, busy_until = now + len(running) * TEXT * pace, now + len(running) * TEXT * slow
    return outcome


def test_a_device_that_keeps_its_pace_is_trusted() -> None:
    margin = Margin()
    outcome = simulate(margin, stalls=False, seconds=150.0)
    assert outcome.late == 0 and margin.part == MOST
    assert outcome.in_time > 0.98 * outcome.seconds / TEXT


def test_where_runs_stall_fewer_are_let_in_and_those_are_in_time() -> None:
    """With half of the time, some are too late; with what is learnt as many are in time."""
    fixed = simulate(Fixed(), stalls=True, seconds=240)
    learnt = simulate(margin := Margin(), stalls=True, seconds=240)
    assert fixed.late > 0.05 * fixed.in_time
    assert learnt.late < 0.01 * learnt.in_time
    assert learnt.in_time > 0.95 * fixed.in_time
    assert LEAST <= margin.part < 0.5


def test_requests_far_from_the_limit_tell_nothing() -> None:
    """Such as those of a client whose deadlines nobody can keep."""
    margin = Margin()
    for number in range(1000):
        margin.ended(number, 0.001, number + 0.1, number + 1.0)
    assert margin.part == START


def test_what_was_let_in_before_a_fall_does_not_make_another() -> None:
    margin = Margin()
    for number in range(50):
        margin.ended(number * 0.001, 0.35, 1.0, 1.2)
    assert margin.part == pytest.approx(0.7 * START)
    margin.ended(1.3, 0.2, 2.3, 2.4)
    assert margin.part == pytest.approx(0.49 * START)
