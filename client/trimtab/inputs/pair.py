"""A pair of texts that are read together: padded token ids, with their mask and types."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trimtab.inputs.graph import DeclaredInput
from trimtab.inputs.text import VECTORS, TextInput, feeds
from trimtab.values.column import Columns


@dataclass(frozen=True, slots=True)
class PairInput(TextInput):
    """Pairs of texts, tokenised together. Their units are tokens.

    The column `ids`, int32, has each pair's token ids, and `types`, uint8, their types: these depend on where
    the second text begins. `second` is the type of its tokens, for samples.
    """

    texts: ClassVar[int] = 2

    second: int = 0
    kind: str = "pair"

    @classmethod
    def doubts(cls, declared: DeclaredInput, names: Collection[str]) -> Iterator[tuple[bool, str]]:
        """As for texts; and whether it is read by roles, which only texts are."""
        yield from TextInput.doubts(declared, names)
        yield VECTORS in names, f"reads {VECTORS}, which pairs have not"

    def feeds(self, batch: Columns) -> Mapping[str, NDArray[Any]]:
        """As for texts, with the types of the column."""
        ids = batch["ids"]
        made = feeds([ids.item(place) for place in range(len(ids))], self.pad_id, self.types, self.names)
        if "token_type_ids" in made:
            made["token_type_ids"][made["attention_mask"] == 1] = batch["types"].values
        return made

    def sample(self, units: int) -> Mapping[str, NDArray[Any]]:
        """Ids as for texts; the second half is the second text."""
        types = np.zeros(units, np.uint8)
        types[units // 2 :] = self.second
        return {**TextInput.sample(self, units), "types": types}

    def describe(self, units: Sequence[int]) -> str:
        """The numbers of tokens of the pairs, and the range of their ids."""
        return (
            f"pairs of {', '.join(map(str, units))} tokens, with ids from 0 to {self.highest or self.pad_id}"
        )
