"""What each tenant may use: a rate, a limit of what it has in flight, a share. Sans-IO.

The rate is a token bucket (Turner, 1986). A request passes while the bucket holds anything; it is charged the
most tokens that it can have, and gets back those that it does not. So no request is too large for a bucket:
if one overdraws it, the next one waits.
"""

from collections.abc import Mapping

from trimtab_server.config import Quota
from trimtab_server.engine.admission.margin import Margin

# How many tenants without a quota of their own are told apart; any others share an account.
MOST_UNNAMED = 4096
# How long a bucket takes to fill, if the configuration does not give its size.
BURST_SECONDS = 10.0
# In metrics, the name of all tenants without a quota of their own.
OTHER = "other"
# The weight of each request in a tenant's running average of true over estimated tokens.
STEP = 0.05


class FlowAccount:
    """What one flow of a tenant has in flight: a connection's, if the tenant has no name."""

    __slots__ = ("in_flight", "uncounted")

    def __init__(self) -> None:
        self.in_flight = 0  # tokens, as Admission counts them
        self.uncounted = 0  # of these, not yet counted by the tokenizer


class Account:
    """What one tenant has in flight, what it may still use, and what was learnt from its requests."""

    __slots__ = ("_filled", "_level", "flows", "in_flight", "margin", "metered", "name", "quota", "true")

    def __init__(self, name: str, quota: Quota, now: float) -> None:
        self.name = name  # "" for the shared account
        self.quota = quota
        self.metered = bool(quota.tokens_per_second or quota.max_tokens_in_flight)  # it has a quota
        self.in_flight = 0  # tokens, as Admission counts them
        self.flows: dict[str, FlowAccount] = {}  # by flow
        self.true = 1.0  # true tokens, as a share of those estimated on arrival
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
        """Take tokens out of the bucket; if negative, put them back."""
        if self.quota.tokens_per_second:
            self._level = min(self.burst, self._level - tokens)

    def counted(self, estimate: int, tokens: int) -> None:
        """The tokenizer has counted one of its requests."""
        self.true += STEP * (tokens / max(estimate, 1) - self.true)

    def idle(self, now: float) -> bool:
        """Whether a new account would be the same."""
        self.wait(now)
        return not self.in_flight and self._level >= self.burst


class Quotas:
    """Every tenant's account: `named` are quotas by tenant, `unnamed` is the quota of each other tenant."""

    def __init__(self, unnamed: Quota, named: Mapping[str, Quota]) -> None:
        self._quota = unnamed
        self._quotas = dict(named)
        self._named: dict[str, Account] = {}
        self._unnamed: dict[str, Account] = {}
        self._crowd: Account | None = None
        self._swept = float("-inf")

    def weight(self, tenant: str) -> float:
        """The tenant's share of the devices, relative to others."""
        return self._quotas.get(tenant, self._quota).weight

    def label(self, tenant: str) -> str:
        """What metrics call the tenant: names that callers make up must not become labels."""
        return tenant if tenant in self._quotas else OTHER

    def account(self, tenant: str, now: float) -> Account:
        """The tenant's account. There are at most the configured ones, MOST_UNNAMED, and the shared one."""
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
