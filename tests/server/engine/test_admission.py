"""Admission: what is in flight stays bounded, and what leaves makes room."""

import asyncio
import contextlib
import time

import pytest

from trimtab.errors import InvalidArgument, ResourceExhausted
from trimtab_server.config import Quota
from trimtab_server.engine.admission.admission import Admission
from trimtab_server.engine.admission.margin import START
from trimtab_server.engine.admission.quotas import Quotas


def test_it_refuses_what_has_no_room_and_says_when_to_come_back() -> None:
    admission = Admission(100)
    with admission.admit(80, lambda coming: 1.5):
        with (
            pytest.raises(ResourceExhausted, match="80 of 100 tokens") as caught,
            admission.admit(30, lambda coming: 1.5),
        ):
            pass
        assert caught.value.retry_after == 1.5
        with admission.admit(20, lambda coming: 1.5, None, "another"):
            assert admission.tokens == 100
    assert admission.tokens == 0


def test_settling_gives_back_what_the_estimate_held_too_much() -> None:
    admission = Admission(100)
    with admission.admit(100, lambda coming: 0.0) as reservation:
        reservation.settle(10)
        with admission.admit(90, lambda coming: 0.0, None, "another"):
            assert admission.tokens == 100
    assert admission.tokens == 0


def test_a_request_over_the_whole_limit_is_told_so() -> None:
    with (
        pytest.raises(InvalidArgument, match="max_tokens_in_flight"),
        Admission(100).admit(101, lambda coming: 0.0),
    ):
        pass


def test_what_cannot_be_answered_in_time_is_refused_at_once() -> None:
    admission = Admission(100)
    now = time.monotonic()
    with pytest.raises(ResourceExhausted, match=r"queue is 3\.00 s long") as caught:
        with admission.admit(10, lambda coming: 3.0, now + 2):
            pass
    assert caught.value.retry_after == 3.0
    assert admission.tokens == 0
    with admission.admit(10, lambda coming: 3.0, now + 60):
        assert admission.tokens == 10


def test_a_request_that_fails_leaves_nothing_behind() -> None:
    admission = Admission(100)
    with pytest.raises(RuntimeError), admission.admit(50, lambda coming: 0.0):
        raise RuntimeError
    assert admission.tokens == 0


class Clock:
    """A test turns it. `call`: a request near the limit of what may wait, ten seconds from its deadline."""

    def __init__(self) -> None:
        self.now = 0.0
        self.quotas = Quotas(Quota(), {})
        self.admission = Admission(1000, self.quotas, clock=lambda: self.now)

    def margin(self, tenant: str) -> float:
        return self.quotas.account(tenant, self.now).margin.part

    def call(self, tenant: str, seconds: float, error: BaseException | None = None) -> None:
        with (
            contextlib.suppress(asyncio.CancelledError, RuntimeError),
            self.admission.admit(1, lambda coming: 3.9, self.now + 10, tenant),
        ):
            self.now += seconds
            if error is not None:
                raise error


def test_calls_that_are_given_up_or_fail_teach_nothing() -> None:
    clock = Clock()
    for _ in range(100):
        clock.call("a", 0.001, asyncio.CancelledError())
        clock.call("a", 1.0, RuntimeError())
    assert clock.margin("a") == START
    for _ in range(100):
        clock.call("a", 1.0)
    assert clock.margin("a") > START
    # By its deadline: gRPC's own timer may be a little earlier than ours.
    clock.call("b", 9.9, asyncio.CancelledError())
    assert clock.margin("b") < START


def test_one_tenants_calls_move_nobody_elses_margin() -> None:
    clock = Clock()
    clock.call("slow", 11.0)
    assert clock.margin("slow") < START == clock.margin("other")
    for _ in range(100):
        clock.call("quick", 0.1)
    assert clock.margin("quick") > START == clock.margin("other")


def test_what_a_tenants_texts_hold_of_their_estimates_is_its_own() -> None:
    """Ten tokens of a hundred that were estimated are no news about another tenant's."""
    coming: list[float] = []
    admission = Admission(10_000)

    def queue_seconds(tokens: float) -> float:
        coming.append(tokens)
        return 0.0

    for _ in range(200):
        with admission.admit(100, queue_seconds, None, "short") as reservation:
            reservation.settle(10)
    for tenant in ("short", "other"):
        deadline = time.monotonic() + 60
        with (
            admission.admit(100, queue_seconds, deadline, tenant),
            admission.admit(1, queue_seconds, deadline, tenant),
        ):
            pass
    assert coming[1] < 15 and coming[3] == 100


def test_what_is_held_beside_the_tokens_is_in_flight_and_not_charged() -> None:
    quotas = Quotas(Quota(tokens_per_second=1, burst_tokens=100), {})
    admission = Admission(1000, quotas, clock=lambda: 0.0)
    for _ in range(9):
        with admission.admit(10, lambda coming: 0.0, None, "a", 700) as reservation:
            assert admission.tokens == 710
            reservation.settle(5)
            assert admission.tokens == 705
            with pytest.raises(ResourceExhausted, match="705 of 1000"):
                admission.admit(10, lambda coming: 0.0, None, "b", 400).__enter__()
    assert admission.tokens == 0
    with pytest.raises(InvalidArgument, match="up to 1010 tokens"):
        admission.admit(10, lambda coming: 0.0, None, "a", 1000).__enter__()


def test_a_connection_without_a_name_leaves_room_for_others() -> None:
    """Where callers show nothing, one flooding connection is told so, and the next one is let in."""
    admission, held = Admission(9000), []
    with pytest.raises(ResourceExhausted, match="this connection has 60"):
        while True:
            held.append(admission.admit(60, lambda coming: 0.0, None, "", 0, "flood"))
            held[-1].__enter__()
    assert 0.6 * 9000 < admission.tokens <= 6000
    coming: list[float] = []
    with admission.admit(
        60, lambda each: coming.append(each) or 0.0, time.monotonic() + 9, "", 0, "newcomer"
    ):
        assert coming == [0]  # what the other has not had counted yet is not before it
    for each in held:
        each.__exit__(None, None, None)
    assert admission.tokens == 0
