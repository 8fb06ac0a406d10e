"""How long a free worker waits for companions of the texts that it could run: sans-IO.

On a core that runs and calls share, a run that begins at once ends no sooner: the calls in the server need
the core meanwhile. If they go first, their texts are in the same run, which saves the fixed cost of another
one. All that waiting loses is the time in which the core is idle, while answers and calls travel. So idle
time is counted, and a worker may lose as much of it as the fixed cost that it may save, or less if fewer
texts are expected than wait already. To stake as much as there is to gain costs at most twice what it would
cost to know beforehand (the ski rental problem). However busy the core is, nothing waits for longer than the
last run took.

Expected are the callers whose texts the last run answered, times the share of such callers that came back in
time so far. So there is no timer, and a caller that is alone waits for nobody. If a wait was in vain, fewer
are expected the next time. While nothing waits, that is forgotten step by step, and so it is tried again.
"""

# The weight of each run in the running average of the share that comes back.
STEP = 0.1
# How much of the way back to certainty each run goes that did not wait.
FORGET = 0.002
# Fewer texts than this are not expected.
LEAST_EXPECTED = 0.5
# Less is not worth a look at the clock, in seconds.
LEAST_SECONDS = 50e-6


class Companions:
    """Whose texts may join those that wait. Not thread-safe: the engine's lock guards it.

    `idle` is the reading of a clock that counts idle seconds.
    """

    def __init__(self) -> None:
        self._share = 1.0  # of the callers, those that come back in time
        self._answered = 0  # texts, since the last run began
        self._away = 0  # of these, texts in whose place none has come yet
        self._run_seconds = 0.0
        self._idle = 0.0  # when they were answered
        self._until = 0.0  # the end of any patience
        self._watched = False  # it was seen who came back

    def answered(self, items: int, run_seconds: float, took: float, now: float, idle: float) -> None:
        """A run of so many items has ended, which took so long; another one would cost `run_seconds`,
        whatever is in it."""
        self._answered += items
        self._away += items
        self._run_seconds, self._idle, self._until = run_seconds, idle, now + took

    def came(self, items: int) -> None:
        """So many items were queued."""
        self._away = max(0, self._away - items)

    def patience(self, waiting: int, now: float, idle: float) -> float:
        """For how many seconds to leave what waits waiting, if all of them are idle; 0: not at all."""
        if not waiting:
            self._watched = True  # which costs nothing
            return 0.0
        expected = self._share * self._away
        if expected < LEAST_EXPECTED:
            return 0.0
        left = self._run_seconds * min(1.0, expected / waiting) - (idle - self._idle)
        left = min(left, self._until - now)
        if left < LEAST_SECONDS:
            return 0.0
        self._watched = True
        return left

    def went(self) -> None:
        """A run has begun: nobody is waited for until the next one ends."""
        if self._watched and self._answered:
            self._share += STEP * (1.0 - self._away / self._answered - self._share)
        else:
            self._share += FORGET * (1.0 - self._share)
        self._answered = self._away = 0
        self._watched = False
