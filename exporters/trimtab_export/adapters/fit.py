"""The fit itself: read, split, check, embed, climb, choose, judge, write, one after the other."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab import adapter as adapters
from trimtab import bundle as bundles
from trimtab.adapter import Adapter, Arms, Check, Counts, Reads
from trimtab.errors import AdapterError, BundleError
from trimtab_export.adapters import calibrate, checks, gate, inputs, metrics, split, stage
from trimtab_export.adapters.climb import Climbed, Ground, climb
from trimtab_export.adapters.encode import Encoder
from trimtab_export.adapters.maps import Groups, Map
from trimtab_export.adapters.metrics import Index
from trimtab_export.adapters.split import Judged, Split

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

CASCADE_DEPTH = 200


@dataclass(frozen=True, slots=True)
class Request:
    """What to fit: two bundles' folders, and the files to learn from."""

    source: Path
    target: Path
    texts: Path
    queries: Path | None = None
    pairs: Path | None = None
    old_vectors: Path | None = None
    name: str | None = None
    documents: int = 10_000
    fit_queries: int = 40_000


@dataclass(frozen=True, slots=True)
class Asked:
    """Queries as both encoders see them: new rows [embedding | states], old vectors, groups, right documents."""

    rows: Floats
    old: Floats
    groups: Groups
    right: list[list[int]]

    def with_right(self, right: list[list[int]]) -> "Asked":
        return Asked(self.rows, self.old, self.groups, right)
