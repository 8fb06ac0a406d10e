"""The sans-IO fleet, under a fake clock: whatever fails, hangs or comes back late, its promises hold."""

import math

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.server.models_made import ALONE, model, payload
from trimtab.errors import InternalError, Unavailable
from trimtab_server.engine.batch import Batch, Item
from trimtab_server.engine.fleet.fleet import STOP_SECONDS, FailedItems, Fleet, Flight, Job
from trimtab_server.engine.fleet.standing import FIRST_PROBE, LAST_PROBE, RESTORE_SECONDS, Reason

MODEL = model()
HANG = 10.0
FAULT = RuntimeError("a fault")


def batch(size: int, deadline: float | None = None) -> Batch:
    ids = np.zeros(3, np.int32)
    items = (Item(MODEL, payload(ids), ALONE, deadline, waiters={object(): [0]}) for _ in range(size))
    return Batch(MODEL, tuple(items))


class Clocked:
    """A fleet with its log of changes."""

    def __init__(self, *devices: str, restore_seconds: float = math.inf) -> None:
        self.changes: list[tuple[str, bool, Reason | None]] = []
        self.fleet = Fleet(
            devices, HANG, lambda *change: self.changes.append(change), lambda device: restore_seconds
        )

    def restore(self, device: str, now: float) -> None:
        self.fleet.standing.probing(device, now)
        self.fleet.standing.probed(device, well=True, now=now)

    def end_on(self, device: str, job: Job, now: float = 0.0) -> list[FailedItems]:
        """The process of the device ends while the job runs there, and another one begins."""
        flight = self.fly(device, job, now)
        self.fleet.standing.take_out(device, "lost", now)
        assert self.fleet.land(flight)
        failed = self.fleet.ended(flight, FAULT)
        self.restore(device, now)
        return failed

    def fly(self, device: str, job: Job, now: float = 0.0) -> Flight:
        return self.fleet.launch(device, job, 0.001, now)

    def raise_on(self, device: str, job: Job, *, sick: bool = False, now: float = 0.0) -> list[FailedItems]:
        flight = self.fly(device, job, now)
        assert self.fleet.land(flight)
        return self.fleet.failed(flight, FAULT, sick=sick, now=now)

    def succeed_on(self, device: str, job: Job, now: float = 0.0) -> None:
        flight = self.fly(device, job, now)
        assert self.fleet.land(flight)
        self.fleet.succeeded(flight, now)

    def again(self, device: str, now: float = 0.0) -> Job | None:
        return self.fleet.again(device, now).job


def test_where_another_device_succeeds_the_first_was_at_fault() -> None:
    clocked = Clocked("a", "b")
    whole = batch(4)
    assert clocked.raise_on("a", Job(whole)) == []
    assert clocked.again("a") is None, "it goes to another device"
    job = clocked.again("b")
    assert job is not None and job.batch == whole
    assert clocked.fleet.standing.up("a"), "the text may be at fault"
    clocked.succeed_on("b", job)
    assert clocked.changes == [("a", False, "raised")]


def test_where_another_device_fails_too_the_text_is_at_fault() -> None:
    clocked = Clocked("a", "b")
    whole = batch(2)
    clocked.raise_on("a", Job(whole))
    job = clocked.again("b")
    assert job is not None
    assert clocked.raise_on("b", job) == []
    halves = [clocked.again("a"), clocked.again("b")]
    assert [half.batch.items for half in halves if half] == [(whole.items[0],), (whole.items[1],)]
    for half in halves:
        assert half is not None
    assert halves[0] and clocked.raise_on("a", halves[0]) == [FailedItems((whole.items[0],), FAULT)]
    assert halves[1] is not None
    clocked.succeed_on("b", halves[1])
    assert clocked.changes == []


def test_one_device_alone_tries_by_halves_and_stays() -> None:
    clocked = Clocked("a")
    whole = batch(2)
    assert clocked.raise_on("a", Job(whole)) == []
    first, second = clocked.again("a"), clocked.again("a")
    assert first and second and first.batch.items + second.batch.items == whole.items
    assert clocked.raise_on("a", first) == [FailedItems(first.batch.items, FAULT)]
    assert clocked.fleet.standing.up("a")


def test_one_device_that_fails_on_anything_goes_out() -> None:
    clocked = Clocked("a")
    (failed,) = clocked.raise_on("a", Job(batch(2)), sick=True)
    assert isinstance(failed.error, Unavailable) and not clocked.fleet.standing.serving


def test_a_run_that_hangs_is_tried_elsewhere_and_its_late_result_ignored() -> None:
    clocked = Clocked("a", "b")
    whole = batch(3)
    flight = clocked.fly("a", Job(whole))
    assert clocked.fleet.due() == HANG
    assert clocked.fleet.hung(HANG - 0.01) == [] and clocked.changes == []
    assert clocked.fleet.hung(HANG) == [] and clocked.changes == [("a", False, "hung")]
    job = clocked.again("b", HANG)
    assert job is not None and job.batch == whole
    assert not clocked.fleet.land(flight)
    second = clocked.fly("b", job, HANG)
    (failed,) = clocked.fleet.hung(2 * HANG)
    assert failed.items == whole.items and isinstance(failed.error, InternalError), "texts that hang devices"
    assert not clocked.fleet.land(second) and not clocked.fleet.standing.serving and not clocked.fleet.flying


def test_a_run_that_could_be_stopped_leaves_its_device_in_service() -> None:
    clocked = Clocked("a", "b")
    whole = batch(2)
    flight = clocked.fly("a", Job(whole))
    assert clocked.fleet.late(HANG - 0.01) == []
    assert clocked.fleet.late(HANG) == [flight] and clocked.fleet.late(HANG) == [], "it is told once"
    assert clocked.fleet.hung(HANG) == [], "it gets a little longer"
    assert clocked.fleet.land(flight) and clocked.fleet.overran(flight, HANG) == []
    job = clocked.again("b", HANG)
    assert job is not None and job.batch == whole
    second = clocked.fly("b", job, HANG)
    assert clocked.fleet.late(2 * HANG) == [second] and clocked.fleet.land(second)
    (failed,) = clocked.fleet.overran(second, 2 * HANG)
    assert failed.items == whole.items and isinstance(failed.error, InternalError)
    assert clocked.changes == []


def test_a_run_that_cannot_be_stopped_hangs_a_little_later() -> None:
    clocked = Clocked("a")
    flight = clocked.fly("a", Job(batch(1)))
    assert clocked.fleet.late(HANG) == [flight]
    (failed,) = clocked.fleet.hung(HANG + STOP_SECONDS)
    assert isinstance(failed.error, Unavailable) and not clocked.fleet.standing.serving


def test_what_has_returned_and_is_looked_into_does_not_hang() -> None:
    clocked = Clocked("a")
    flight = clocked.fly("a", Job(batch(1)))
    clocked.fleet.returned(flight, HANG - 1)
    assert clocked.fleet.hung(HANG) == [] and clocked.fleet.land(flight)


def test_processes_are_ended_and_not_told_to_stop() -> None:
    clocked = Clocked("a", restore_seconds=1.0)
    clocked.fly("a", Job(batch(1)))
    assert clocked.fleet.late(HANG) == []


def test_a_run_may_take_twenty_times_as_long_as_predicted() -> None:
    clocked = Clocked("a")
    clocked.fleet.launch("a", Job(batch(1)), 1.5, 0.0)
    assert clocked.fleet.due() == 30.0
    (failed,) = clocked.fleet.hung(30.0)
    assert isinstance(failed.error, Unavailable), "the only device, not the text"


def test_whoever_is_gone_or_late_is_not_tried_again() -> None:
    clocked = Clocked("a", "b")
    items = batch(3, deadline=5.0).items
    items[0].waiters.clear()
    items[1].deadline = None
    clocked.raise_on("a", Job(Batch(MODEL, items)))
    again = clocked.fleet.again("b", 6.0)
    assert again.job is not None and again.job.batch.items == (items[1],)
    assert items[2] in again.expired
    assert not clocked.fleet.busy(MODEL)


def test_what_no_other_device_is_left_for_comes_back_to_the_first() -> None:
    clocked = Clocked("a", "b")
    clocked.raise_on("a", Job(batch(1)))
    hanging = clocked.fly("b", Job(batch(1)))
    clocked.fleet.hung(HANG)
    jobs = [clocked.again("a", HANG), clocked.again("a", HANG)]
    assert all(jobs) and not clocked.fleet.land(hanging)


def test_probes_grow_apart_and_come_closer_with_success() -> None:
    clocked = Clocked("a", "b")
    now, delays = 0.0, []
    clocked.raise_on("a", Job(batch(1)), sick=True)
    for _ in range(12):
        seconds = clocked.fleet.probe_in("a", now)
        assert seconds is not None
        delays.append(round(seconds, 6))
        now += seconds
        assert clocked.fleet.probe_in("a", now) == 0.0
        clocked.fleet.standing.probing("a", now)
        assert clocked.fleet.probe_in("a", now) is None, "one probe at a time"
        clocked.fleet.standing.probed("a", well=False, now=now)
    assert delays[:4] == [FIRST_PROBE * 2**n for n in range(4)] and delays[-1] == LAST_PROBE
    clocked.fleet.standing.probing("a", now)
    clocked.fleet.standing.probed("a", well=True, now=now)
    assert clocked.changes[-1] == ("a", True, None) and clocked.fleet.probe_in("a", now) is None
    for _ in range(20):
        clocked.succeed_on("a", Job(batch(1)), now)
    clocked.raise_on("a", Job(batch(1)), sick=True, now=now)
    assert clocked.fleet.probe_in("a", now) == pytest.approx(FIRST_PROBE)


def test_what_a_process_ran_when_it_ended_runs_alone_and_by_halves() -> None:
    clocked = Clocked("a", restore_seconds=1.0)
    whole = batch(2)
    assert clocked.end_on("a", Job(whole)) == []
    beside = clocked.fly("a", Job(batch(1)))
    assert clocked.fleet.again("a", 0.0).hold, "it waits until the device is free"
    assert clocked.fleet.land(beside)
    job = clocked.again("a")
    assert job is not None and job.batch == whole
    flight = clocked.fly("a", job)
    assert clocked.fleet.again("a", 0.0).hold, "nothing runs beside it"
    clocked.fleet.land(flight)
    clocked.fleet.ended(flight, FAULT)
    first, second = clocked.again("a"), clocked.again("a")
    assert first and second
    clocked.succeed_on("a", first)
    assert clocked.end_on("a", second) == [FailedItems(whole.items[1:], FAULT)]


def test_a_device_is_waited_for_where_it_will_be_back_in_seconds() -> None:
    clocked = Clocked("a", restore_seconds=1.0)
    clocked.fleet.standing.take_out("a", "lost", 0.0)
    assert clocked.fleet.standing.serving and not clocked.fleet.standing.up("a")
    assert clocked.fleet.standing.back_in(0.0) == pytest.approx(1.0 + FIRST_PROBE)
    clocked.fleet.standing.probing("a", 0.5)
    clocked.fleet.standing.probed("a", well=False, now=0.5)
    assert clocked.fleet.standing.serving, "it may be well the next time"
    assert clocked.fleet.due() == RESTORE_SECONDS
    clocked.fleet.hung(RESTORE_SECONDS)
    assert not clocked.fleet.standing.serving
    clocked.restore("a", 30.0)
    assert clocked.fleet.standing.serving and clocked.fleet.standing.up("a")
    slow = Clocked("a", restore_seconds=RESTORE_SECONDS)
    slow.fleet.standing.take_out("a", "lost", 0.0)
    assert not slow.fleet.standing.serving


def test_a_process_that_ends_time_and_again_is_begun_more_and_more_seldom_and_waited_for_no_more() -> None:
    clocked = Clocked("a", restore_seconds=0.5)
    now, times = 0.0, 0
    while True:
        clocked.fleet.standing.take_out("a", "lost", now)
        if not clocked.fleet.standing.serving:
            break
        now += clocked.fleet.probe_in("a", now) or 0.0
        clocked.restore("a", now)
        times += 1
    assert 3 <= times <= 10


def test_a_hung_run_is_tried_again_in_another_process() -> None:
    clocked = Clocked("a", restore_seconds=1.0)
    clocked.fly("a", Job(batch(1)))
    assert clocked.fleet.hung(HANG) == []
    clocked.restore("a", HANG)
    job = clocked.again("a", HANG)
    assert job is not None
    clocked.fly("a", job, HANG)
    (failed,) = clocked.fleet.hung(2 * HANG)
    assert isinstance(failed.error, InternalError)


def test_a_device_that_is_to_begin_anew_ends_its_runs_first() -> None:
    clocked = Clocked("a", restore_seconds=1.0)
    flight = clocked.fly("a", Job(batch(1)))
    clocked.fleet.standing.retire("a", 0.0)
    assert clocked.fleet.standing.serving and clocked.fleet.probe_in("a", 1.0) is None
    assert clocked.fleet.land(flight)
    clocked.fleet.succeeded(flight, 1.0)
    assert clocked.fleet.probe_in("a", 1.0) == 0.0


def test_a_probe_that_hangs_is_named_once() -> None:
    clocked = Clocked("a", restore_seconds=1.0)
    clocked.fleet.standing.take_out("a", "lost", 0.0)
    clocked.fleet.standing.probing("a", 1.0)
    assert clocked.fleet.standing.stuck(10.0) == []
    assert clocked.fleet.standing.stuck(100.0) == ["a"] and clocked.fleet.standing.stuck(100.0) == []


class Machine(RuleBasedStateMachine):
    """Batches fly, succeed, raise, hang and return late on three devices, against a plain account of them."""

    restore_seconds = math.inf

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.fleet = Fleet("abc", HANG, lambda *_: None, lambda _: self.restore_seconds)
        self.flights: list[Flight] = []
        self.given_up: list[Flight] = []
        self.admitted: set[Item] = set()
        self.answered: list[Item] = []

    def settle(self, failures: list[FailedItems]) -> None:
        """What the engine does after each event."""
        for failed in failures:
            self.answered += failed.items
        if not self.fleet.standing.serving:
            self.answered += self.fleet.clear()

    def land(self, flight: Flight) -> None:
        self.flights.remove(flight)
        assert self.fleet.land(flight)

    @rule(device=st.sampled_from("abc"), size=st.integers(1, 5), patience=st.none() | st.floats(1, 40))
    def take(self, device: str, size: int, patience: float | None) -> None:
        if not self.fleet.standing.up(device):
            return
        again = self.fleet.again(device, self.now)
        self.answered += again.expired
        job = again.job
        if again.hold:
            return
        if job is None:
            fresh = batch(size, None if patience is None else self.now + patience)
            self.admitted |= set(fresh.items)
            job = Job(fresh)
        self.flights.append(self.fleet.launch(device, job, 0.1, self.now))

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from(self.flights))
        self.land(flight)
        self.answered += flight.job.batch.items
        self.fleet.succeeded(flight, self.now)
        self.settle([])

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), sick=st.booleans())
    def fail(self, data: st.DataObject, sick: bool) -> None:
        flight = data.draw(st.sampled_from(self.flights))
        self.land(flight)
        self.settle(self.fleet.failed(flight, FAULT, sick=sick, now=self.now))
        assert not (sick and self.fleet.standing.up(flight.device))

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        late = [flight for flight in self.flights if flight.due <= self.now]
        self.settle(self.fleet.hung(self.now))
        self.flights = [flight for flight in self.flights if flight not in late]
        self.given_up += late
        assert not any(self.fleet.standing.up(flight.device) for flight in late)

    @precondition(lambda self: self.given_up)
    @rule()
    def come_late(self) -> None:
        assert not self.fleet.land(self.given_up.pop()), "what was given up never lands"

    @rule(device=st.sampled_from("abc"), well=st.booleans())
    def probe(self, device: str, well: bool) -> None:
        if self.fleet.probe_in(device, self.now) != 0:
            return
        self.fleet.standing.probing(device, self.now)
        self.fleet.standing.probed(device, well=well, now=self.now)
        assert self.fleet.standing.up(device) is well

    @invariant()
    def nothing_is_lost_or_answered_twice(self) -> None:
        waiting = [item for job in self.fleet._jobs for item in job.batch.items]
        flying = [item for flight in self.flights for item in flight.job.batch.items]
        everywhere = [*self.answered, *waiting, *flying]
        assert len(everywhere) == len(set(everywhere)) and set(everywhere) == self.admitted
        assert not waiting or self.fleet.standing.serving, "nothing waits for a device that is not there"
        assert self.fleet.flying == bool(self.flights)
        for suspect in (flight for flight in self.flights if flight.job.suspect):
            assert [each for each in self.flights if each.device == suspect.device] == [suspect]

    def teardown(self) -> None:
        """Where one device is well, everything comes to an end."""
        for flight in list(self.flights):
            self.land(flight)
            self.settle(self.fleet.failed(flight, FAULT, sick=False, now=self.now))
        for device in "abc":
            if self.fleet.probe_in(device, self.now) is not None:
                self.fleet.standing.probing(device, self.now)
                self.fleet.standing.probed(device, well=True, now=self.now)
        steps = 0
        while self.fleet.standing.serving and self.admitted - set(self.answered):
            device = next(each for each in "abc" if self.fleet.standing.up(each))
            again = [self.fleet.again(each, self.now) for each in "abc" if self.fleet.standing.up(each)]
            for found in again:
                self.answered += found.expired
                if found.job is not None:
                    flight = self.fleet.launch(device, found.job, 0.1, self.now)
                    assert self.fleet.land(flight)
                    self.settle(self.fleet.failed(flight, FAULT, sick=False, now=self.now))
            steps += 1
            assert steps < 1000, "a batch goes round for ever"
        self.nothing_is_lost_or_answered_twice()


class Restarting(Machine):
    """The same where each device has a process, which may end and begin anew."""

    restore_seconds = 1.0

    @rule(device=st.sampled_from("abc"))
    def end(self, device: str) -> None:
        self.fleet.standing.take_out(device, "lost", self.now)
        self.settle([])
        for flight in [each for each in self.flights if each.device == device]:
            self.land(flight)
            self.settle(self.fleet.ended(flight, FAULT))

    @rule(device=st.sampled_from("abc"))
    def retire(self, device: str) -> None:
        self.fleet.standing.retire(device, self.now)
        self.settle([])


TestRestarting = Restarting.TestCase
TestRestarting.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestFleet = Machine.TestCase
TestFleet.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
