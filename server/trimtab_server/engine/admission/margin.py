"""How much of a request's time the queue may take: learnt from what became of admitted requests.

Additive increase, multiplicative decrease, as in TCP (Chiu and Jain, 1989): an admitted request that came too
late makes the part smaller at once, one that came in time makes it larger slowly. Only requests that were
admitted near the limit count: a different part would have changed nothing for the others. Sans-IO.
"""

START, LEAST, MOST = 0.4, 0.1, 0.8
FALL = 0.7
# Per second, while requests near the limit are in time.
RISE = 0.005
# Requests predicted to take more than this share of the limit are near it.
NEAR = 0.5
# An answer in this last part of its time is too late: it still has to be packed and sent.
LAST = 0.05


def late(admitted: float, deadline: float, now: float) -> bool:
    """Whether a request that ends now, and was admitted then, is too late for its deadline."""
    return now > deadline - LAST * (deadline - admitted)


class Margin:
    """The part of a request's time that the queue may take, between LEAST and MOST."""

    def __init__(self) -> None:
        self.part = START
        self._fell = float("-inf")
        self._rose = float("-inf")

    def allows(self, needed: float, left: float) -> bool:
        """Whether a request may wait `needed` of the `left` seconds until its deadline.

        A request that need not wait is always allowed.
        """
        return needed <= max(self.part * left, 0.0)

    def ended(self, admitted: float, needed: float, deadline: float, now: float) -> None:
        """A request that was predicted to wait `needed` seconds ran to its end, or to its deadline."""
        left = deadline - admitted
        if needed <= NEAR * self.part * left:
            return
        if late(admitted, deadline, now):
            # A request admitted before the last fall says nothing about the part since.
            if admitted > self._fell:
                self.part = max(LEAST, self.part * FALL)
                self._fell = now
        else:
            self.part = min(MOST, self.part + RISE * min(max(now - self._rose, 0.0), 1.0))
        self._rose = now
