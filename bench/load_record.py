"""Records when each text of a load was due, sent and answered, and with what; checks and summarises this."""

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.v1 import encoder_pb2 as pb


@dataclass(slots=True)
class LoadRecord:
    """What happened to each text: when it was due, sent and answered, and with what."""

    texts: int
    due: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.due, self.sent, self.answered = ([0.0] * self.texts for _ in range(3))
        self.answers = [None] * self.texts

    def send(self, row: int, due: float | None = None) -> None:
        """A text is sent now; unless given, it was also due now."""
        self.sent[row] = time.perf_counter()
        self.due[row] = self.sent[row] if due is None else due

    def answer(self, row: int, answer: Any) -> None:
        """A text was answered."""
        if self.answers[row] is not None:
            raise SystemExit(f"text {row} was answered twice")
        self.answered[row] = time.perf_counter()
        self.answers[row] = answer

    def vectors(self, width: int) -> NDArray[np.float32]:
        """The answers, shape (texts, width); SystemExit if one is missing or is not a unit vector."""
        missing = [row for row, answer in enumerate(self.answers) if answer is None]
        if missing:
            raise SystemExit(f"{len(missing)} of {self.texts} texts were not answered")
        vectors = np.stack([_decoded(answer) for answer in self.answers]).astype(np.float32)
        if vectors.shape != (self.texts, width):
            raise SystemExit(f"vectors of shape {vectors.shape} instead of {(self.texts, width)}")
        worst = float(np.abs(np.linalg.norm(vectors, axis=1) - 1).max())
        if not worst < 1e-3:
            raise SystemExit(f"a vector's length is {worst} off 1")
        return vectors

    def figures(self) -> dict[str, float]:
        """Texts per second; percentiles of latency and lag, in milliseconds."""
        seconds = max(self.answered) - min(self.due)
        latency = (np.array(self.answered) - np.array(self.due)) * 1e3
        lag = (np.array(self.sent) - np.array(self.due)) * 1e3
        return {
            "rate": self.texts / seconds,
            "seconds": seconds,
            **{f"p{p}": float(np.percentile(latency, p)) for p in (50, 90, 99)},
            "max": float(latency.max()),
            "lag_p50": float(np.percentile(lag, 50)),
            "lag_p99": float(np.percentile(lag, 99)),
            "lag_max": float(lag.max()),
        }


def _decoded(answer: Any) -> Any:
    if not isinstance(answer, bytes):
        return answer
    embeddings = pb.EmbedResponse.FromString(answer).embeddings[0].vectors
    return np.frombuffer(embeddings.data, "<f4").reshape(embeddings.rows, -1)[0]
