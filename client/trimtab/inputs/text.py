"""Text: its padded token ids, with their mask and types."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from trimtab.inputs.graph import DeclaredInput, GraphInput, Tried
from trimtab.kinds import Role
from trimtab.values.column import Columns

TokenId: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 31)]

# What a token is for, in the column `marks`: others attend to it, it gives a vector, or both.
ATTENDED, GIVES = 1, 2
# The graph's input that says which tokens give a vector.
VECTORS = "vector_mask"
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


class Reading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How texts of a role are read, where roles differ in more than a prompt, as ColBERT's do.

    `marker` is a token that is put behind a text's first one. `fill` is a token that fills a text up to
    `most` tokens (query expansion); it attends to the others, and they attend to it only if `attended`.
    Tokens in `skipped` are read, and give no vector.
    """

    most: Annotated[int, Meta(ge=1, le=1 << 20)]  # tokens, marker and special tokens included
    marker: TokenId | None = None
    fill: TokenId | None = None
    attended: bool = True
    skipped: Annotated[tuple[TokenId, ...], Meta(max_length=1 << 16)] = ()


class TextSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of texts in a manifest, besides those of all inputs."""

    pad_id: TokenId  # pads the shorter rows of a batch
    # How texts of each role are read; both, or none if they are read alike.
    query: Reading | None = None
    passage: Reading | None = None

    @property
    def readings(self) -> dict[Role, Reading]:
        """How texts of each role are read; empty if they are read alike, and every token gives a vector."""
        if self.query is None or self.passage is None:
            return {}
        return {"query": self.query, "passage": self.passage}


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
    ids: Sequence[NDArray[np.int32]],
    pad_id: int,
    types: TokenTypes,
    names: Collection[str] = INPUTS,
    marks: Sequence[NDArray[np.uint8]] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """A graph's inputs for texts given as token ids: int64 (n, the longest text's tokens) each.

    `input_ids` is padded with `pad_id`; `attention_mask` is 1 for tokens and 0 for pads; `token_type_ids` is
    included if `names`, the inputs of the graph, contain it. With the `marks` of each token, `attention_mask`
    is 1 only for those that are attended to, and `vector_mask` for those that give a vector.
    """
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.full(mask.shape, pad_id, np.int64)
    tokens[mask] = np.concatenate(ids)
    made = {"input_ids": tokens, "attention_mask": mask.astype(np.int64)}
    if "token_type_ids" in names:
        made["token_type_ids"] = types.rows(lengths, mask.shape[1])
    if marks is not None:
        marked = np.zeros(mask.shape, np.int64)
        marked[mask] = np.concatenate(marks)
        made["attention_mask"], made[VECTORS] = marked & ATTENDED, marked // GIVES
    return made


@dataclass(frozen=True, slots=True)
class TextInput(GraphInput):
    """Texts. Their units are tokens; the column `ids`, int32, has each text's token ids, and `marks`, uint8,
    what each is for, if the graph asks which tokens give a vector.

    `highest` is the highest id that the tokenizer gives; 0: samples consist of pads only.
    """

    units: ClassVar[str] = "tokens"
    idle: ClassVar[frozenset[str]] = frozenset({"pad_id"})  # pads are masked
    texts: ClassVar[int] = 1  # in an item

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
        other = len(known) < len(names) or not set(REQUIRED) <= known <= {*INPUTS, VECTORS}
        yield other, f"reads {', '.join(names)}"
        yield from _readings(declared, VECTORS in known)

    @classmethod
    def rehearse(cls, content: bytes, step: Callable[[], None]) -> Tried:
        """Try a tokenizer: the fewest tokens of an item, and the highest id."""
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
            highest = max([highest, *tokenizer.encode(*[text] * cls.texts).ids])
        step()
        highest = max([highest, *tokenizer.get_vocab(with_added_tokens=True).values()])
        return Tried(fewest=len(tokenizer.encode(*[""] * cls.texts).ids), highest=highest)

    @property
    def signature(self) -> dict[str, tuple[str, int]]:
        """For each of the graph's inputs, ONNX Runtime's type and the number of axes."""
        return dict.fromkeys(self.names, ("tensor(int64)", 2))

    def feeds(self, batch: Columns) -> Mapping[str, NDArray[Any]]:
        """See the function `feeds`."""
        ids, marks = (
            [batch[name].item(place) for place in range(len(batch[name]))] if name in batch else None
            for name in ("ids", "marks")
        )
        return feeds(ids or [], self.pad_id, self.types, self.names, marks)

    def sample(self, units: int) -> Mapping[str, NDArray[Any]]:
        """Ids from all over the vocabulary, its last one first."""
        marks = {"marks": np.full(units, ATTENDED | GIVES, np.uint8)} if VECTORS in self.names else {}
        if not self.highest:
            return {"ids": np.full(units, self.pad_id, np.int32), **marks}
        ids = (self.highest - 7919 * np.arange(units, dtype=np.int64)) % (self.highest + 1)
        return {"ids": ids.astype(np.int32), **marks}

    def describe(self, units: Sequence[int]) -> str:
        """The numbers of tokens of the texts, and the range of their ids."""
        return (
            f"texts of {', '.join(map(str, units))} tokens, with ids from 0 to {self.highest or self.pad_id}"
        )


def _readings(declared: DeclaredInput, vectors: bool) -> Iterator[tuple[bool, str]]:
    """Whether roles are read in a way that cannot be, or that does not fit the graph. `vectors`: the graph
    asks which tokens give a vector."""
    settings, which = msgspec.convert(declared.settings, TextSettings), f"of the input {declared.name}"
    one = (settings.query is None) is not (settings.passage is None)
    yield one, f"has a reading {which} for one role alone"
    yield bool(settings.readings) is not vectors, f"has a graph that does not fit the readings {which}"
    for role, reading in settings.readings.items():
        more = reading.most > declared.most_units
        yield more, f"reads {reading.most} tokens of a {role}, and {declared.most_units} of an item"
