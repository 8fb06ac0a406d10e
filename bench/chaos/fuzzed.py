"""What the fuzzer calls: a function of bytes that raises only if the code has a defect."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FuzzTarget:
    """A function to fuzz, and inputs to begin with. The first `right` of these must not be refused."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    right: int = 0


class Refusing(contextlib.suppress):
    """Errors that are right answers to wrong input. They are counted: for right input they are wrong."""

    count = 0

    def __exit__(self, *raised: Any) -> bool:
        refused = bool(super().__exit__(*raised))
        Refusing.count += refused
        return refused
