"""The common form of every kind of source: plain data, and the source's own embed function."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.manifest import Prompts, SpaceParts
from trimtab.kinds import (
    Pooling,
    Similarity,
)

Activation = Literal["Identity", "Tanh", "ReLU", "Sigmoid"]
# What a search optimises, and the device of its variants.
Target = Literal["latency", "throughput", "size"]
Device = Literal["cpu", "cuda"]
Embed: TypeAlias = Callable[[list[str], str], NDArray[np.float32]]


@dataclass(frozen=True)
class Settings:
    """The user's settings. None: as the source declares it."""

    source: str
    pooling: Pooling | None = None
    normalize: bool = False
    query_prompt: str | None = None
    passage_prompt: str | None = None
    max_tokens: int | None = None
    output: str | None = None  # of a graph
    reads: str = "text"  # the kind of its input
    also: tuple[str, ...] = ()  # kinds of outputs beside the dense vectors


@dataclass(frozen=True)
class Dense:
    """A fully connected layer after the pooling: weight float32 (out, in), bias float32 (out,) or None."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    activation: Activation


@dataclass(frozen=True)
class Normalize:
    """Scales each vector to length 1."""


Layer: TypeAlias = Dense | Normalize


@dataclass(frozen=True)
class Head:
    """What turns token states into a vector: the pooling (None: the graph pools itself), then the layers."""

    pooling: Pooling | None
    layers: tuple[Layer, ...] = ()

    @property
    def normalizes(self) -> bool:
        """Whether the last step scales a vector to length 1."""
        return bool(self.layers) and isinstance(self.layers[-1], Normalize)


@dataclass(frozen=True)
class Graph:
    """An ONNX graph on disk and the output that the head reads: token states or finished vectors."""

    path: Path
    output: str


@dataclass(frozen=True)
class TokenizerFile:
    """`json` is a `tokenizers` file without truncation and padding; `pad_id` fills the shorter rows."""

    json: str
    pad_id: int


@dataclass(frozen=True)
class Source:
    """An encoder, read and checked.

    `backbone` is a torch module of transformers, or an existing graph. `embed(texts, prompt)` is the source's
    own result, float32 (n, dimensions), computed without anything that the exporter makes. `notes` are lines
    for the user about declarations of the source that a bundle does not keep.
    """

    backbone: Any
    head: Head
    tokenizer: TokenizerFile
    prompts: Prompts
    max_tokens: int
    dimensions: int
    similarity: Similarity
    normalized: bool
    space_parts: SpaceParts
    architecture: str
    embed: Embed
    notes: tuple[str, ...] = ()
