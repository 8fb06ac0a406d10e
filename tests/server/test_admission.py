"""The door: what is in flight stays bounded, and what leaves makes room."""

import time

import pytest

from trimtab.errors import InvalidArgument, ResourceExhausted
from trimtab_server.admission.admission import Admission


def test_it_refuses_what_has_no_room_and_says_when_to_come_back() -> None:
    door = Admission(100)
    with door.admit(80, lambda coming: 1.5):
        with (
            pytest.raises(ResourceExhausted, match="80 of 100 tokens") as caught,
            door.admit(30, lambda coming: 1.5),
        ):
            pass
        assert caught.value.retry_after == 1.5
        with door.admit(20, lambda coming: 1.5, None, "another"):
            assert door.tokens == 100
    assert door.tokens == 0


def test_settling_gives_back_what_the_estimate_held_too_much() -> None:
    door = Admission(100)
    with door.admit(100, lambda coming: 0.0) as share:
        share.settle(10)
        with door.admit(90, lambda coming: 0.0, None, "another"):
            assert door.tokens == 100
    assert door.tokens == 0


def test_a_request_over_the_whole_limit_is_told_so() -> None:
    with (
        pytest.raises(InvalidArgument, match="max_tokens_in_flight"),
        Admission(100).admit(101, lambda coming: 0.0),
    ):
        pass


def test_what_cannot_be_answered_in_time_is_refused_at_once() -> None:
    door = Admission(100)
    now = time.monotonic()
    with pytest.raises(ResourceExhausted, match=r"queue is 3\.00 s long") as caught:
        with door.admit(10, lambda coming: 3.0, now + 2):
            pass
    assert caught.value.retry_after == 3.0
    assert door.tokens == 0
    with door.admit(10, lambda coming: 3.0, now + 60):
        assert door.tokens == 10


def test_a_request_that_fails_leaves_nothing_behind() -> None:
    door = Admission(100)
    with pytest.raises(RuntimeError), door.admit(50, lambda coming: 0.0):
        raise RuntimeError
    assert door.tokens == 0
