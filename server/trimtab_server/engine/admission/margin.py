"""How much of a request's time the queue may be predicted to take: learnt from what became of those let in.

Additive increase, multiplicative decrease, as TCP does it (Chiu and Jain, 1989): what was let in and came too
late makes the part smaller at once, what came in time makes it larger slowly. Only requests that were let in
near the limit tell anything: another part would have changed nothing for the others. Sans-IO.
"""

START, LEAST, MOST = 0.4, 0.1, 0.8
FALL = 0.7
# A second, while requests near the limit are in time.
RISE = 0.005
# Nearer than this to the limit.
NEAR = 0.5
# An answer that leaves in the last part of the time is too late: it has to be packed and sent.
LAST = 0.05


def late(admitted: float, deadline: float, now: float) -> bool:
    """Whether a request that ends now, and was admitted then, is too late for its deadline."""
    return now > deadline - LAST * (deadline - admitted)


class Margin:
    """The part, between LEAST and MOST."""

    def __init__(self) -> None:
        self.part = START
        self._fell = float("-inf")
        self._rose = float("-inf")

    def allows(self, needed: float, left: float) -> bool:
        """Whether a request may wait `needed` of the `left` seconds until its deadline.

        What nothing delays is left to its own deadline.
        """
        return needed <= max(self.part * left, 0.0)

    def ended(self, admitted: float, needed: float, deadline: float, now: float) -> None:
        """A request ran to its end, or to its deadline; so many seconds of waiting were predicted for it."""
        left = deadline - admitted
        if needed <= NEAR * self.part * left:
            return
        if late(admitted, deadline, now):
            # What was let in before the last fall says nothing about the part since.
            if admitted > self._fell:
                self.part = max(LEAST, self.part * FALL)
                self._fell = now
        else:
            self.part = min(MOST, self.part + RISE * min(max(now - self._rose, 0.0), 1.0))
        self._rose = now
