"""Tokenizers: what a bundle requires of a source's tokenizer, and batches of ids from one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray

from trimtab import tokens
from trimtab.artifacts.manifest import Prompts
from trimtab.errors import BundleError, ExportError
from trimtab.inputs import text as inputs
from trimtab.inputs.arranging import Arranger
from trimtab.inputs.pair import PairInput
from trimtab.inputs.text import Reading
from trimtab.kinds import Role
from trimtab.pairs import Pair, PairTokenizer
from trimtab.values.column import stacked
from trimtab_export.source import TokenizerFile

NO_PROMPTS = Prompts()
NO_READINGS: Mapping[Role, Reading] = {}


def from_transformers(tokenizer: Any) -> TokenizerFile:
    """The tokenizer of transformers as a `tokenizers` file; refused by name if a bundle cannot hold it."""
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise ExportError(
            f"the tokenizer {name} is a slow one, written in Python: a bundle holds a tokenizer.json. "
            "Convert it with AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)"
        )
    if not tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False):
        raise ExportError(
            f"the tokenizer {name} has no vocabulary: put the tokenizer.json of the encoder beside its "
            "config.json"
        )
    for what, side in (("pads", tokenizer.padding_side), ("cuts", tokenizer.truncation_side)):
        if side != "right":
            raise ExportError(
                f"the tokenizer {name} {what} on the {side}; Trimtab serves encoders that do it on the right"
            )
    if tokenizer.pad_token_id is None:
        raise ExportError(
            f"the tokenizer {name} has no padding token: give `pad_token` in tokenizer_config.json"
        )
    if "attention_mask" not in tokenizer.model_input_names:
        raise ExportError(
            f"the tokenizer {name} makes no attention mask (model_input_names in tokenizer_config.json), so "
            "that a text's vector depends on its neighbours in a batch"
        )
    if tokenizer.split_special_tokens:
        raise ExportError(
            f"the tokenizer {name} splits special tokens that stand in a text (split_special_tokens in "
            "tokenizer_config.json), which a tokenizer.json cannot hold"
        )
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content["model"].get("dropout"):
        raise ExportError(
            f"the tokenizer {name} drops merges at random (dropout in tokenizer.json), so that a text has "
            "another vector each time: set it to null"
        )
    if "token_type_ids" not in tokenizer.model_input_names:
        _forget_types(content["post_processor"])
    return plain(json.dumps(content, ensure_ascii=False), int(tokenizer.pad_token_id))


def _forget_types(part: Any) -> None:
    """Make a template produce only token type 0: the encoder gets no other."""
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _forget_types(each)
    if isinstance(part, dict) and "type_id" in part:
        part["type_id"] = 0


def plain(content: str, pad_id: int) -> TokenizerFile:
    """A `tokenizers` file without truncation and padding; it must have tokens for an empty text."""
    tokenizer = tokenizers.Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if not tokenizer.encode("").ids:
        raise ExportError(
            "the tokenizer gives no token at all for the empty text, which would have no vector: "
            "Trimtab serves encoders whose tokenizer adds special tokens, such as [CLS] or </s>"
        )
    return TokenizerFile(json=tokenizer.to_str(), pad_id=pad_id)


class Collates(Protocol):
    """Makes padded batches of items."""

    def count(self, item: Any, /) -> int:
        """How many units of an item are read."""

    def in_role(self, items: Sequence[Any], role: Role, /) -> dict[str, NDArray[Any]]:
        """What a graph is fed for these items in this role."""


class Collator:
    """Makes padded batches with the server's own code: prompt and text in one string, cut at the end.

    Raises ExportError if the server could not read this tokenizer.
    """

    def __init__(
        self,
        tokenizer: TokenizerFile,
        max_tokens: int,
        prompts: Prompts = NO_PROMPTS,
        readings: Mapping[Role, Reading] = NO_READINGS,
    ) -> None:
        try:
            self._tokenizer = tokens.Tokenizer(tokenizers.Tokenizer.from_str(tokenizer.json), max_tokens)
        except BundleError as error:
            raise ExportError(str(error)) from None
        self._pad_id, self._prompts = tokenizer.pad_id, prompts
        self._arrangers = {role: Arranger(reading) for role, reading in readings.items()}

    def count(self, text: str) -> int:
        """How many tokens of a text are read."""
        return len(self._tokenizer.read([text], "end")[0].ids)

    @property
    def special(self) -> tuple[int, int]:
        """How many special tokens stand before and after a text."""
        return len(self._tokenizer.types.head), len(self._tokenizer.types.tail)

    def in_role(self, texts: Sequence[str], role: Role) -> dict[str, NDArray[np.int64]]:
        """The texts with the prompt of this role, arranged as it is read."""
        prompt, arrange = self._prompts.of(role), self._arrangers.get(role)
        if arrange is None:
            return self(texts, prompt)
        read = self._tokenizer.read([prompt + text for text in texts], "end", arrange.room)
        arranged = [arrange(each.ids) for each in read]
        ids, marks = ([each[name] for each in arranged] for name in ("ids", "marks"))
        return inputs.feeds(ids, self._pad_id, self._tokenizer.types, marks=marks)

    def __call__(self, texts: Sequence[str], prompt: str = "") -> dict[str, NDArray[np.int64]]:
        """input_ids, attention_mask and token_type_ids of the texts, int64 (n, the longest one's tokens)."""
        read = self._tokenizer.read([prompt + text for text in texts], "end")
        return inputs.feeds([each.ids for each in read], self._pad_id, self._tokenizer.types)


class PairCollator:
    """Makes padded batches of pairs with the server's own code.

    Raises ExportError if the server could not read pairs with this tokenizer.
    """

    def __init__(self, tokenizer: TokenizerFile, max_tokens: int) -> None:
        try:
            self._tokenizer = PairTokenizer(tokenizers.Tokenizer.from_str(tokenizer.json), max_tokens)
        except BundleError as error:
            raise ExportError(str(error)) from None
        self._given = PairInput(pad_id=tokenizer.pad_id)

    def count(self, pair: Pair) -> int:
        """How many tokens of a pair are read."""
        return len(self._tokenizer.read([pair], "end")[0].ids)

    def in_role(self, pairs: Sequence[Pair], role: Role) -> dict[str, NDArray[np.int64]]:
        """input_ids, attention_mask and token_type_ids of the pairs, int64 (n, the longest one's tokens)."""
        read = self._tokenizer.read(pairs, "end")
        columns = {
            "ids": stacked([each.ids for each in read]),
            "types": stacked([each.types for each in read]),
        }
        return dict(self._given.feeds(columns))
