"""The door: bounds what is in flight, so that memory and waiting time stay bounded, whatever comes.

What cannot be answered before its deadline is refused at once, while that costs next to nothing: under
overload a server that takes up everything answers nothing in time.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trimtab.errors import InvalidArgument, ResourceExhausted

# The queue may take so much of a request's time: the rest is for its own run, and for what was not foreseen.
PROMISE = 0.6


class Pass:
    """One admitted request's share of the tokens in flight."""

    def __init__(self, admission: "Admission", tokens: int) -> None:
        self._admission = admission
        self.tokens = tokens

    def settle(self, tokens: int) -> None:
        """Replace the estimate made at the door by the true count."""
        self._admission.tokens += tokens - self.tokens
        self.tokens = tokens


class Admission:
    """Counts the tokens of all requests in flight, and says no beyond a limit, or where it is too late.

    At the door only the length of a text is known. A text has no more tokens than bytes, nor than its
    encoder reads: that is what it is charged until the tokenizer has counted, and a little for its length.
    """

    def __init__(self, max_tokens_in_flight: int) -> None:
        self.limit = max_tokens_in_flight
        self.tokens = 0

    @contextmanager
    def admit(
        self, tokens: int, queue_seconds: Callable[[], float], deadline: float | None = None
    ) -> Iterator[Pass]:
        """Hold a share for as long as the request is in flight.

        `queue_seconds`: how long the queue is likely to be. `deadline` is on
        time.monotonic's clock. Raises InvalidArgument where the request alone is over the limit,
        ResourceExhausted where there is no room beside the others, or no time.
        """
        if tokens > self.limit:
            raise InvalidArgument(
                f"the request may hold up to {tokens} tokens, this server takes {self.limit} at once "
                "(limits.max_tokens_in_flight): send fewer or shorter texts in a request"
            )
        if self.tokens + tokens > self.limit:
            wait = min(max(queue_seconds(), 0.05), 10.0)
            raise ResourceExhausted(
                f"{self.tokens} of {self.limit} tokens are in flight: try again in {wait:.2f} s", wait
            )
        if deadline is not None:
            left, needed = deadline - time.monotonic(), queue_seconds()
            if needed > max(PROMISE * left, 0.0):  # what nothing delays is left to its own deadline
                raise ResourceExhausted(
                    f"the queue is {needed:.2f} s long, the deadline in {max(left, 0.0):.2f} s: try another "
                    "server, allow more time, or send less",
                    needed,
                )
        granted = Pass(self, tokens)
        self.tokens += tokens
        try:
            yield granted
        finally:
            self.tokens -= granted.tokens
