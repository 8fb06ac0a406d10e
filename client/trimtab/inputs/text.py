"""Text: its padded token ids, with their mask and types."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from trimtab.inputs.graph import DeclaredInput, GraphInput, Tried
from trimtab.values.column import Columns

REQUIRED, OPTIONAL = ("input_ids", "attention_mask"), ("token_type_ids",)  # of a graph's inputs
INPUTS = (*REQUIRED, *OPTIONAL)
# Texts that a tokenizer is tried with.
TRIALS = (
    "",
    "a",
    " ",
    "\n",
    "The quick brown fox. " * 40,
    "Ünïcödé 日本語 😀 \u200b",
    "x" * 5000,
    "0 1 2 " * 300,
)


class TextSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of texts in a manifest, besides those of all inputs."""

    pad_id: Annotated[int, Meta(ge=0, lt=1 << 31)]  # pads the shorter rows of a batch


@dataclass(frozen=True, slots=True)
class TokenTypes:
    """The token types of one text: of the special tokens before it, its own tokens, and those after it.

    A tokenizer's template assigns types by position alone, so these few numbers suffice.
    """

    head: tuple[int, ...] = ()
    text: int = 0
    tail: tuple[int, ...] = ()

    def rows(self, lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """The types for texts with so many tokens each, int64 (n, width); pads have type 0."""
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
    """A graph's inputs for texts given as token ids: int64 (n, the longest text's tokens) each.

    `input_ids` is padded with `pad_id`; `attention_mask` is 1 for tokens and 0 for pads; `token_type_ids` is
    included if `names`, the inputs of the graph, contain it.
    """
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(mask.shape, pad_id, np.int64)
    tokens[mask] = np.concatenate(ids)
    made = {"input_ids": tokens, "attention_mask": mask.astype(np.int64)}
    if "token_type_ids" in names:
        made["token_type_ids"] = types.rows(lengths, mask.shape[1])
    return made


@dataclass(frozen=True, slots=True)
class TextInput(GraphInput):
    """Texts. Their units are tokens; the column `ids`, int32, has each text's token ids.

    `highest` is the highest id that the tokenizer gives; 0: samples consist of pads only.
    """

    units: ClassVar[str] = "tokens"
    idle: ClassVar[frozenset[str]] = frozenset({"pad_id"})  # pads are masked

    names: tuple[str, ...] = INPUTS
    pad_id: int = 0
    types: TokenTypes = field(default_factory=TokenTypes)
    fewest: int = 1
    highest: int = 0
    kind: str = "text"

    @classmethod
    def doubts(cls, declared: DeclaredInput, names: Collection[str]) -> Iterator[tuple[bool, str]]:
        """Whether the tokenizer is missing, settings are invalid, or the graph reads something else."""
        yield declared.processor is None, f"has no tokenizer for the input {declared.name}"
        try:
            msgspec.convert(declared.settings, TextSettings)
        except msgspec.ValidationError as error:
            yield True, f"has settings of the input {declared.name} that cannot be: {error}"
        known = set(names)
        other = len(known) < len(names) or not set(REQUIRED) <= known <= set(INPUTS)
        yield other, f"reads {', '.join(names)}"

    @classmethod
    def rehearse(cls, content: bytes, step: Callable[[], None]) -> Tried:
        """Try a tokenizer: the fewest tokens of a text, and the highest id."""
        import tokenizers  # only here: a device's own process needs none

        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library's errors have no class of their own
            raise ValueError(f"no tokenizer: {error}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        highest = 0
        for text in TRIALS:
            step()
            highest = max([highest, *tokenizer.encode(text).ids])
        step()
        highest = max([highest, *tokenizer.get_vocab(with_added_tokens=True).values()])
        return Tried(fewest=len(tokenizer.encode("").ids), highest=highest)

    @property
    def signature(self) -> dict[str, tuple[str, int]]:
        """For each of the graph's inputs, ONNX Runtime's type and the number of axes."""
        return dict.fromkeys(self.names, ("tensor(int64)", 2))

    def feeds(self, batch: Columns) -> Mapping[str, NDArray[Any]]:
        """See the function `feeds`."""
        ids = batch["ids"]
        return feeds([ids.item(place) for place in range(len(ids))], self.pad_id, self.types, self.names)

    def sample(self, units: int) -> Mapping[str, NDArray[Any]]:
        """Ids from all over the vocabulary, its last one first."""
        if not self.highest:
            return {"ids": np.full(units, self.pad_id, np.int32)}
        ids = (self.highest - 7919 * np.arange(units, dtype=np.int64)) % (self.highest + 1)
        return {"ids": ids.astype(np.int32)}

    def describe(self, units: Sequence[int]) -> str:
        """The numbers of tokens of the texts, and the range of their ids."""
        return (
            f"texts of {', '.join(map(str, units))} tokens, with ids from 0 to {self.highest or self.pad_id}"
        )
