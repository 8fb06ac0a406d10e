"""What a run of a graph costs, in four figures."""

from dataclasses import dataclass
from typing import Annotated, TypeAlias

import msgspec

LEAST = 1e-9  # seconds; a graph that costs nothing would make the batcher divide by it
Positive: TypeAlias = Annotated[float, msgspec.Meta(ge=LEAST)]
NotNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0.0)]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a run: of the run itself, of each token, of each position of padding, and of each pair of
    positions that the attention compares. A graph without padding has almost nothing to pay for it.
    The bounds are for what is read from files."""

    run_seconds: Positive
    token_seconds: Positive
    pad_seconds: NotNegative = 0.0
    pair_seconds: NotNegative = 0.0

    def seconds(self, texts: int, tokens: int, longest: int) -> float:
        """What a run of so many texts takes, of `tokens` altogether, padded to `longest` each."""
        return self.run_seconds + self.token_seconds * self.tokens(texts, tokens, longest)

    def tokens(self, texts: int, tokens: int, longest: int) -> float:
        """The same without the run itself, and in tokens: the real ones and what the others cost."""
        positions = texts * longest
        extra = self.pad_seconds * (positions - tokens) + self.pair_seconds * positions * longest
        return tokens + extra / self.token_seconds

    @property
    def run_tokens(self) -> float:
        """The fixed cost of a run, in tokens."""
        return self.run_seconds / self.token_seconds
