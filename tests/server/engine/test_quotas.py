"""Tenants' accounts under a fake clock: the rate holds, and nobody's inventions fill memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import InvalidArgument, ResourceExhausted
from trimtab_server.config import Quota
from trimtab_server.engine.admission.admission import ROOM, Admission
from trimtab_server.engine.admission.quotas import MOST_UNNAMED, OTHER, Account, Quotas


class TimedAdmission:
    """An admission under a clock that a test turns, and what was refused at it."""

    def __init__(self, limit: int, unnamed: Quota | None = None, **named: Quota) -> None:
        self.now = 0.0
        self.refused: list[tuple[str, str]] = []
        self.quotas = Quotas(unnamed or Quota(), named)
        self.admission = Admission(
            limit, self.quotas, lambda *what: self.refused.append(what), lambda: self.now
        )

    def pass_through(self, tenant: str, most: int, tokens: int) -> ResourceExhausted | None:
        """A request that may hold `most` tokens and has `tokens`, answered at once; why it was refused."""
        try:
            with self.admission.admit(most, lambda coming: 0.0, None, tenant) as granted:
                granted.settle(tokens)
        except ResourceExhausted as error:
            return error
        return None


@given(
    st.floats(1, 1000),
    st.integers(1, 2000),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 500)), min_size=1, max_size=60),
)
def test_no_more_is_used_than_the_rate_gives(
    rate: float, burst: int, requests: list[tuple[float, int]]
) -> None:
    """Over any time: what the bucket held, what has come since, and at most one request too much."""
    timed = TimedAdmission(10**6, a=Quota(tokens_per_second=rate, burst_tokens=burst))
    used = 0
    for pause, tokens in requests:
        timed.now += pause
        before = used
        if timed.pass_through("a", 4 * tokens, tokens) is None:
            used += tokens
        assert before <= burst + rate * timed.now + 1e-6 or used == before


def test_who_waits_as_long_as_is_said_is_let_in() -> None:
    timed = TimedAdmission(10**6, a=Quota(tokens_per_second=100, burst_tokens=50))
    assert timed.pass_through("a", 400, 250) is None  # more than the bucket holds: the next waits
    error = timed.pass_through("a", 4, 1)
    assert error is not None and "'a' has used up its 100 tokens a second" in str(error)
    assert error.retry_after == pytest.approx(2.01)
    timed.now += error.retry_after - 0.02
    assert timed.pass_through("a", 4, 1) is not None
    timed.now += 0.03
    assert timed.pass_through("a", 4, 1) is None
    assert timed.refused == [("a", "rate"), ("a", "rate")]


def test_only_true_tokens_are_paid_for() -> None:
    """Not the upper bound, nor anything where a request failed before it was counted."""
    timed = TimedAdmission(10**6, a=Quota(tokens_per_second=1, burst_tokens=100))
    for _ in range(9):
        assert timed.pass_through("a", 1000, 10) is None
    with pytest.raises(RuntimeError), timed.admission.admit(1000, lambda coming: 0.0, None, "a"):
        raise RuntimeError
    assert timed.pass_through("a", 1000, 10) is None
    assert timed.pass_through("a", 1000, 10) is not None


def test_what_a_tenant_has_in_flight() -> None:
    timed = TimedAdmission(1000, a=Quota(max_tokens_in_flight=100))
    with timed.admission.admit(60, lambda coming: 0.0, None, "a"):
        error = timed.pass_through("a", 50, 50)
        assert error is not None and "'a' has 60 of its 100 tokens in flight" in str(error)
        assert timed.pass_through("b", 500, 500) is None
        assert timed.pass_through("a", 40, 40) is None
    assert timed.refused == [("a", "in_flight")]
    with pytest.raises(InvalidArgument, match="max_tokens_in_flight of tenant 'a'"):
        timed.pass_through("a", 101, 1)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 30)), max_size=400))
def test_whatever_the_others_hold_there_is_room_for_one_more(requests: list[tuple[str, int]]) -> None:
    """With a small request of a tenant that has nothing in flight, after any flood of five others."""
    limit = 10_000
    timed = TimedAdmission(limit)
    held = [timed.admission.admit(tokens, lambda coming: 0.0, None, tenant) for tenant, tokens in requests]
    entered = []
    for each in held:
        try:
            each.__enter__()
            entered.append(each)
        except ResourceExhausted:
            pass
    assert timed.pass_through("newcomer", limit // (1 + 5 * ROOM) - 30, 1) is None
    for each in entered:
        each.__exit__(None, None, None)
    assert timed.admission.tokens == 0


def test_a_flood_fills_its_share_and_says_whose_it_is() -> None:
    timed = TimedAdmission(900)
    held = [timed.admission.admit(10, lambda coming: 1.5, None, "a") for _ in range(80)]
    for each in held:
        each.__enter__()
    with pytest.raises(ResourceExhausted, match=r"kept for others: try again in 1\.50 s"):
        timed.admission.admit(10, lambda coming: 1.5, None, "a").__enter__()
    assert timed.refused == [(OTHER, "share")]
    with timed.admission.admit(10, lambda coming: 1.5, None, "b"):
        pass
    for each in held:
        each.__exit__(None, None, None)


def test_names_that_callers_make_up_fill_neither_memory_nor_metrics() -> None:
    quotas = Quotas(Quota(tokens_per_second=1, burst_tokens=10), {"a": Quota(weight=3)})
    accounts: set[Account] = set()
    for number in range(3 * MOST_UNNAMED):
        account = quotas.account(f"made-up-{number}", 0.0)
        account.in_flight = 1
        accounts.add(account)
    assert len(accounts) == MOST_UNNAMED + 1
    assert quotas.account("a", 0.0).name == "a"
    assert (quotas.label("a"), quotas.label("made-up-1")) == ("a", OTHER)
    assert (quotas.weight("a"), quotas.weight("made-up-1")) == (3, 1)
    for account in accounts:
        account.in_flight = 0
    assert quotas.account("another", 100.0) not in accounts  # those who have gone made room
