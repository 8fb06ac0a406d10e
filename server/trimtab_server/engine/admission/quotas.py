"""What each tenant may use: a rate, a bound of what it has in flight, a share. Sans-IO.

The rate is a bucket of tokens that refills all the time (the token bucket of Turner, 1986). A request passes
while the bucket holds anything, is charged what it may have at most, and gets back what it did not have: so
no request is too large for a bucket, and what was used too much is waited for by the next one.
"""

from collections.abc import Mapping

from trimtab_server.config import Quota
from trimtab_server.engine.admission.margin import Margin

# Tenants without a quota of their own that are told apart at a time; the others of them are one.
MOST_UNNAMED = 4096
# How long a bucket takes to fill, where the configuration does not say how much it holds.
BURST_SECONDS = 10.0
# What tenants without a quota of their own are called in metrics, all of them together.
OTHER = "other"
# How much of what is known of a tenant's texts and their tokens each request replaces.
STEP = 0.05


class Line:
    """What one flow of a tenant has in flight: its connection's, where the tenant has no name."""

    __slots__ = ("in_flight", "uncounted")

    def __init__(self) -> None:
        self.in_flight = 0  # tokens, as Admission counts them
        self.uncounted = 0  # of these, what the tokenizer has not counted yet


class Account:
    """What one tenant has in flight, what it may still use, and what its requests have taught, which others
    need not bear."""

    __slots__ = ("_filled", "_level", "in_flight", "lines", "margin", "name", "quota", "true")

    def __init__(self, name: str, quota: Quota, now: float) -> None:
        self.name = name  # "" for all those that are one
        self.quota = quota
        self.in_flight = 0  # tokens, as Admission counts them
        self.lines: dict[str, Line] = {}  # of these, each flow's
        self.true = 1.0  # tokens, of those that are estimated at the door
        self.margin = Margin()
        self._level = self.burst
        self._filled = now

    @property
    def burst(self) -> float:
        """The most that its bucket holds."""
        return self.quota.burst_tokens or BURST_SECONDS * self.quota.tokens_per_second

    def wait(self, now: float) -> float:
        """Seconds until the tenant may begin a request; 0: now."""
        rate = self.quota.tokens_per_second
        if not rate:
            return 0.0
        self._level = min(self.burst, self._level + (now - self._filled) * rate)
        self._filled = now
        return 0.0 if self._level > 0 else (1 - self._level) / rate

    def use(self, tokens: int) -> None:
        """Take tokens out of the bucket, or, where they are negative, put some back."""
        if self.quota.tokens_per_second:
            self._level = min(self.burst, self._level - tokens)

    def counted(self, estimate: int, tokens: int) -> None:
        """The tokenizer has counted one of its requests."""
        self.true += STEP * (tokens / max(estimate, 1) - self.true)

    def idle(self, now: float) -> bool:
        """Whether it is like one that was never seen."""
        self.wait(now)
        return not self.in_flight and self._level >= self.burst


class Quotas:
    """Every tenant's account: `named` quotas by tenant, and one of this kind for each that has none."""

    def __init__(self, unnamed: Quota, named: Mapping[str, Quota]) -> None:
        self._quota = unnamed
        self._quotas = dict(named)
        self._named: dict[str, Account] = {}
        self._unnamed: dict[str, Account] = {}
        self._crowd: Account | None = None
        self._swept = float("-inf")

    def weight(self, tenant: str) -> float:
        """The tenant's share of the devices, beside others."""
        return self._quotas.get(tenant, self._quota).weight

    def label(self, tenant: str) -> str:
        """What metrics call the tenant: callers' inventions are no labels."""
        return tenant if tenant in self._quotas else OTHER

    def account(self, tenant: str, now: float) -> Account:
        """The tenant's account. There are never more than the configuration and MOST_UNNAMED make."""
        quota = self._quotas.get(tenant)
        accounts = self._unnamed if quota is None else self._named
        account = accounts.get(tenant)
        if account is not None:
            return account
        if quota is None and len(accounts) >= MOST_UNNAMED:
            self._sweep(now)
            if len(accounts) >= MOST_UNNAMED:
                if self._crowd is None:
                    self._crowd = Account("", self._quota, now)
                return self._crowd
        account = accounts[tenant] = Account(tenant, quota or self._quota, now)
        return account

    def _sweep(self, now: float) -> None:
        if now - self._swept < 1.0:  # it looks through all of them
            return
        self._swept = now
        for name in [name for name, account in self._unnamed.items() if account.idle(now)]:
            del self._unnamed[name]
