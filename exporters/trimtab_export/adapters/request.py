"""The request of `trimtab adapter fit`."""

from dataclasses import dataclass
from pathlib import Path

DOCUMENTS = 10_000
FIT_QUERIES = 40_000


@dataclass(frozen=True, slots=True)
class Request:
    """What to fit: two bundles' folders, or FOLDER:VARIANT for a variant of one, and the training data.

    documents: how many are searched to judge the rungs, and used for fitting.
    fit_queries: the most queries to fit on.
    """

    source: str | Path
    target: str | Path
    texts: Path
    queries: Path | None = None
    pairs: Path | None = None
    old_vectors: str | None = None
    name: str | None = None
    documents: int = DOCUMENTS
    fit_queries: int = FIT_QUERIES
    command: str = "trimtab adapter fit"
