"""What a graph is fed: padded token ids, and what stands beside them.

The server and the exporter's check both make it here, so that what was checked is what is served. It needs
NumPy alone: a device's own process imports it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
