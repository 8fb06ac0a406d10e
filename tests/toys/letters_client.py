"""A toy kind of input: bytes, each of which is a token."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trimtab.inputs.graph import DeclaredInput, GraphInput
from trimtab.values.column import Columns

NAMES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, slots=True)
class Letters(GraphInput):
    """Letters as a graph takes them: a column `letters`, uint8, of each item's bytes."""

    units: ClassVar[str] = "letters"

    names: tuple[str, ...] = NAMES
    fewest: int = 1
    shift: int = 0
    kind: str = "letters"

    @classmethod
    def doubts(cls, declared: DeclaredInput, names: Collection[str]) -> Iterator[tuple[bool, str]]:
        yield set(declared.settings) != {"shift"}, f"has the settings {', '.join(declared.settings)}"
        yield not set(NAMES[:2]) <= set(names) <= set(NAMES), f"reads {', '.join(names)}"

    @property
    def signature(self) -> dict[str, tuple[str, int]]:
        return dict.fromkeys(self.names, ("tensor(int64)", 2))

    def feeds(self, batch: Columns) -> Mapping[str, NDArray[Any]]:
        letters = batch["letters"]
        items = [letters.item(place) for place in range(len(letters))]
        lengths = np.array([len(each) for each in items])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate(items).astype(np.int64) + self.shift
        made = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": 0 * ids}
        return {name: made[name] for name in self.names}

    def sample(self, units: int) -> Mapping[str, NDArray[Any]]:
        return {"letters": np.arange(units, dtype=np.uint8) % 20}

    def describe(self, units: Sequence[int]) -> str:
        return f"words of {', '.join(map(str, units))} letters"
