"""Points of a training curve."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """The quality on texts that are not trained on, after so many tokens and seconds."""

    tokens: int
    seconds: float
    ndcg: float  # share of the whole encoder's
    cosine: float  # to the whole encoder's vectors
