"""What a graph is fed: for texts padded token ids, and what stands beside them.

The server and the exporter's check both make it here, so that what was checked is what is served. It needs
NumPy alone: a device's own process imports it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.values.column import Columns

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, slots=True)
class TokenTypes:
    """The token types of one text: of the special tokens before it, of its own, of the special ones after it.

    A tokenizer's template gives types by position alone, so that these few numbers are all there is to know.
    """

    head: tuple[int, ...] = ()
    text: int = 0
    tail: tuple[int, ...] = ()

    def rows(self, lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """The types of texts of so many tokens each, int64 (n, width); those of pads are 0."""
        if not (self.text or any(self.head) or any(self.tail)):
            return np.zeros((len(lengths), width), np.int64)
        types = np.full((len(lengths), width), self.text, np.int64)
        types[:, : len(self.head)] = self.head[:width]
        for back, kind in enumerate(reversed(self.tail), start=1):
            types[np.arange(len(lengths)), np.maximum(lengths - back, 0)] = kind
        return np.where(np.arange(width) < lengths[:, None], types, 0)


def feeds(
    ids: Sequence[NDArray[np.int32]], pad_id: int, types: TokenTypes, names: Collection[str] = INPUTS
) -> dict[str, NDArray[np.int64]]:
    """The inputs of a graph for texts as token ids: int64 (n, the longest text's tokens) each.

    `input_ids` is filled up with `pad_id`, `attention_mask` is 1 for tokens and 0 for pads; `token_type_ids`
    is made where `names`, the inputs of the graph, have it.
    """
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(mask.shape, pad_id, np.int64)
    tokens[mask] = np.concatenate(ids)
    made = {"input_ids": tokens, "attention_mask": mask.astype(np.int64)}
    if "token_type_ids" in names:
        made["token_type_ids"] = types.rows(lengths, mask.shape[1])
    return made


class GraphInput(ABC):
    """A kind of input, as a graph takes it: plain settings, which go to other processes as JSON.

    Each kind is a frozen dataclass that has its name in `kind`, and stands in KINDS.
    """

    kind: str
    names: tuple[str, ...]  # the graph's inputs
    fewest: int  # units of an item

    @property
    @abstractmethod
    def signature(self) -> dict[str, tuple[str, int]]:
        """Of each of the graph's inputs ONNX Runtime's type and the number of axes."""

    @abstractmethod
    def feeds(self, batch: Columns) -> Mapping[str, NDArray[Any]]:
        """The graph's inputs for a batch of items, as they were prepared."""

    @abstractmethod
    def sample(self, units: int) -> Mapping[str, NDArray[Any]]:
        """The arrays of an item of so many units, to try a graph with."""

    @abstractmethod
    def describe(self, units: Sequence[int]) -> str:
        """What samples of so many units are, for people."""


@dataclass(frozen=True, slots=True)
class TextInput(GraphInput):
    """Texts, whose units are tokens: a column `ids`, int32, of each text's token ids.

    `highest` is the highest id that the tokenizer gives; 0: samples are of pads alone.
    """

    names: tuple[str, ...] = INPUTS
    pad_id: int = 0
    types: TokenTypes = field(default_factory=TokenTypes)
    fewest: int = 1
    highest: int = 0
    kind: str = "text"

    @property
    def signature(self) -> dict[str, tuple[str, int]]:
        """Of each of the graph's inputs ONNX Runtime's type and the number of axes."""
        return dict.fromkeys(self.names, ("tensor(int64)", 2))

    def feeds(self, batch: Columns) -> Mapping[str, NDArray[Any]]:
        """As the function does."""
        ids = batch["ids"]
        return feeds([ids.item(place) for place in range(len(ids))], self.pad_id, self.types, self.names)

    def sample(self, units: int) -> Mapping[str, NDArray[Any]]:
        """Ids from all over the vocabulary, its last one first."""
        if not self.highest:
            return {"ids": np.full(units, self.pad_id, np.int32)}
        ids = (self.highest - 7919 * np.arange(units, dtype=np.int64)) % (self.highest + 1)
        return {"ids": ids.astype(np.int32)}

    def describe(self, units: Sequence[int]) -> str:
        """Texts by their tokens, and between which ids these are."""
        return (
            f"texts of {', '.join(map(str, units))} tokens, with ids from 0 to {self.highest or self.pad_id}"
        )


KINDS: dict[str, type[GraphInput]] = {"text": TextInput}
