"""Bounds the requests in flight, so that memory and waiting times stay bounded under any load.

A request that cannot be answered before its deadline is refused on arrival, when that costs next to nothing:
an overloaded server that accepts everything answers nothing in time. How close to its deadline a request may
come is learnt for each tenant, from its own requests (margin.py). What a tenant has in flight is bounded by
its quota and by the room that is left, so that there is always some for others.
"""

import time
from collections.abc import Callable
from typing import Literal

from trimtab.errors import InvalidArgument, ResourceExhausted
from trimtab_server.config import Quota
from trimtab_server.engine.admission.margin import late
from trimtab_server.engine.admission.quotas import Account, FlowAccount, Quotas

# A tenant of weight 1 may hold this many times the room that is left (dynamic thresholds: Choudhury and
# Hahne, 1998). A single tenant gets up to 8/9 of all room, two get 8/17 each; the rest stays free for others.
ROOM = 8
# The same for a connection, if callers have no names: a single one gets up to two thirds.
CONNECTION_ROOM = 2
# After how many seconds a refused client is told to retry, at least and at most.
SOON, LATE = 0.05, 10.0

Reason = Literal["rate", "in_flight", "share", "full", "late"]


class Reservation:
    """The tokens in flight that an admitted request reserves, until the `with` block over it ends.

    `held` of them are for its memory, and are not charged to the tenant's rate. `due` is its deadline, the
    time of its admission and its predicted wait in seconds: the tenant's margin learns from the outcome.
    """

    __slots__ = ("_account", "_admission", "_due", "_flow", "_flow_account", "_held", "settled", "tokens")

    def __init__(
        self,
        admission: "Admission",
        account: Account,
        flow: str,
        flow_account: FlowAccount,
        tokens: int,
        held: int,
        due: tuple[float, float, float] | None,
    ) -> None:
        self._admission = admission
        self._account = account
        self._flow = flow
        self._flow_account = flow_account
        self._held = held
        self._due = due
        self.tokens = tokens
        self.settled = False
        account.flows[flow] = flow_account
        if account.metered:
            account.use(tokens)
        flow_account.uncounted += tokens
        self._change(tokens + held)

    def settle(self, tokens: int) -> None:
        """Replace the estimate made on arrival by the true count."""
        self.settled = True
        self._account.counted(self.tokens, tokens)
        self._flow_account.uncounted -= self.tokens
        if self._account.metered:
            self._account.use(tokens - self.tokens)
        self._change(tokens - self.tokens)
        self.tokens = tokens

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.end(answered=kind is None)

    def end(self, *, answered: bool) -> None:
        """The request is no longer in flight. If its tokens were never counted, it has used none."""
        if not self.settled:
            self._account.use(-self.tokens)
            self._flow_account.uncounted -= self.tokens
        self._change(-self.tokens - self._held)
        if not self._flow_account.in_flight:
            self._account.flows.pop(self._flow, None)
        if self._due is not None:
            deadline, admitted, needed = self._due
            ended = self._admission.clock()
            # A request that failed, or was given up before its deadline, says nothing about the queue.
            if answered or late(admitted, deadline, ended):
                self._account.margin.ended(admitted, needed, deadline, ended)

    def _change(self, tokens: int) -> None:
        self._admission.tokens += tokens
        self._account.in_flight += tokens
        self._flow_account.in_flight += tokens


class Admission:
    """Counts the tokens of all requests in flight, and refuses requests beyond a limit, or if it is too late.

    On arrival, only the length of a text is known. It has no more tokens than bytes, and no more than its
    encoder reads: these it is charged until the tokenizer has counted. It is also charged for the memory that
    it and its vectors take until they are answered.

    `refused` is called for each refusal, with the tenant as metrics call it, and the reason.
    """

    def __init__(
        self,
        max_tokens_in_flight: int,
        quotas: Quotas | None = None,
        refused: Callable[[str, Reason], None] = lambda tenant, reason: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = max_tokens_in_flight
        self.tokens = 0
        self._quotas = quotas or Quotas(Quota(), {})
        self._refused = refused
        self.clock = clock

    def admit(
        self,
        tokens: int,
        queue_seconds: Callable[[float], float],
        deadline: float | None = None,
        tenant: str = "",
        held: int = 0,
        flow: str = "",
    ) -> Reservation:
        """Reserve `tokens`, yet to be counted, and `held` more for memory, until the request is over.

        `queue_seconds` predicts the wait, given how many of the flow's tokens are admitted but not queued
        yet. `deadline` is on the clock. `flow` is the tenant, or the connection if the tenant has no name.

        Raises InvalidArgument if the request alone exceeds a limit; ResourceExhausted if its tenant's quota
        is used up, or there is no room or not enough time.
        """
        now = self.clock()
        account = self._quotas.account(tenant, now)
        flow, size = flow or tenant, tokens + held
        flow_account = account.flows.get(flow) or FlowAccount()
        quota = account.quota
        if size > self.limit or 0 < quota.max_tokens_in_flight < size:
            raise self._too_large(size, account)
        needed = queue_seconds(flow_account.uncounted * account.true) if deadline is not None else 0.0
        refusal = (
            (account.metered and self._over_quota(size, account, now))
            or self._no_room(size, account, flow_account, queue_seconds, alone=flow != tenant)
            or (needed and self._too_late(needed, account, deadline, now))
        )
        if refusal:
            reason, message, wait = refusal
            self._refused(self._quotas.label(tenant), reason)
            raise ResourceExhausted(message, wait)
        due = None if deadline is None else (deadline, now, needed)
        return Reservation(self, account, flow, flow_account, tokens, held, due)

    def _too_large(self, tokens: int, account: Account) -> InvalidArgument:
        own = account.quota.max_tokens_in_flight
        limit, name = self.limit, "limits.max_tokens_in_flight"
        if own and own < limit:
            limit, name = own, f"max_tokens_in_flight of {_whose(account)}"
        return InvalidArgument(
            f"the request may hold up to {tokens} tokens, this server takes {limit} at once "
            f"({name}): send fewer or shorter texts in a request"
        )

    def _over_quota(self, tokens: int, account: Account, now: float) -> tuple[Reason, str, float] | None:
        quota = account.quota
        if quota.tokens_per_second and (wait := account.wait(now)):
            wait = max(wait, SOON)
            return (
                "rate",
                f"{_whose(account)} has used up its {quota.tokens_per_second:g} tokens a second "
                f"(tokens_per_second): try again in {wait:.2f} s, or have the quota raised",
                wait,
            )
        most = quota.max_tokens_in_flight
        if most and account.in_flight + tokens > most:
            return (
                "in_flight",
                f"{_whose(account)} has {account.in_flight} of its {most} tokens in flight "
                "(max_tokens_in_flight): wait for answers before you send more, or have the quota raised",
                SOON,
            )
        return None

    def _no_room(
        self,
        tokens: int,
        account: Account,
        flow_account: FlowAccount,
        queue_seconds: Callable[[float], float],
        *,
        alone: bool,
    ) -> tuple[Reason, str, float] | None:
        left = self.limit - self.tokens - tokens
        if left < 0:
            wait = min(max(queue_seconds(0.0), SOON), LATE)
            message = f"{self.tokens} of {self.limit} tokens are in flight: try again in {wait:.2f} s"
            return "full", message, wait
        held, whose = account.in_flight, ""
        if alone and flow_account.in_flight and flow_account.in_flight + tokens > CONNECTION_ROOM * left:
            held, whose = flow_account.in_flight, "this connection"
        if whose or (held and held + tokens > int(ROOM * account.quota.weight * left)):
            wait = min(max(queue_seconds(0.0), SOON), LATE)
            return (
                "share",
                f"{whose or _whose(account)} has {held} of {self.limit} tokens in flight, the rest is kept "
                f"for others: try again in {wait:.2f} s",
                wait,
            )
        return None

    def _too_late(
        self, needed: float, account: Account, deadline: float | None, now: float
    ) -> tuple[Reason, str, float] | None:
        if deadline is None:
            return None
        left = deadline - now
        if account.margin.allows(needed, left):
            return None
        return (
            "late",
            f"the queue is {needed:.2f} s long, the deadline in {max(left, 0.0):.2f} s: try another "
            "server, allow more time, or send less",
            needed,
        )


def _whose(account: Account) -> str:
    return f"tenant {account.name!r}" if account.name else "your tenant"
