"""The common form of every kind of source: plain data, and the source's own embed function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts.manifest import Output, Prompts, SpaceParts
from trimtab.errors import ExportError
from trimtab.inputs.text import Reading
from trimtab.kinds import Pooling, Role, Similarity
from trimtab.values.column import Columns

Activation = Literal["Identity", "Tanh", "ReLU", "Sigmoid"]
# What a search optimises, and the device of its variants.
Target = Literal["latency", "throughput", "size"]
Device = Literal["cpu", "cuda"]
# As optimum calls them; the first gives token states, the second scores.
Task = Literal["feature-extraction", "text-classification"]
Embed: TypeAlias = Callable[[list[str], str], NDArray[np.float32]]
# The source's own result for items in a role, by the columns of an output.
Reference: TypeAlias = Callable[[list[Any], Role], Columns]


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
    reads: str | None = None  # the kind of its input; None: the source's own
    also: tuple[str, ...] = ()  # kinds of outputs beside those that the source declares
    role: Role | None = None  # which texts to embed, if the source reads roles by different modules
    top_k: int | None = None  # how many entries a sparse vector keeps; None: all
    stop_tokens: tuple[str, ...] = ()  # words that get no weight in sparse vectors


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
    """An ONNX graph on disk and the output that the heads read: token states or something finished."""

    path: Path
    output: str


@dataclass(frozen=True)
class TokenizerFile:
    """`json` is a `tokenizers` file without truncation and padding; `pad_id` fills the shorter rows."""

    json: str
    pad_id: int


@dataclass(frozen=True)
class SourceOutput:
    """An output of a source.

    `declared` is what the manifest will say of it, except for its space and its range for int8. `head` is
    what the maker of its kind makes nodes of. `reference` is computed without anything that the exporter
    makes; None: the source has no such output, and there is nothing to compare it with.
    """

    declared: Output
    head: Any
    reference: Reference | None = None


@dataclass(frozen=True)
class Source:
    """An encoder, read and checked.

    `backbone` is a torch module of transformers, an existing graph, or None if ids are all that is read.
    `task` is what optimum converts the module for, and so which tensor the heads of the `outputs` read.
    `reads` is the kind of input. `readings` say how texts of each role are read, if roles differ in more than
    their prompts. `notes` are lines for the user about what the source declares and a bundle does not keep.

    Smaller variants are made of dense vectors: `head`, `dimensions` and so on are those of the dense output.
    """

    backbone: Any
    outputs: tuple[SourceOutput, ...]
    tokenizer: TokenizerFile
    prompts: Prompts
    max_tokens: int
    architecture: str
    reads: str = "text"
    task: Task = "feature-extraction"
    readings: Mapping[Role, Reading] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles in which an item is embedded differently; one of them if there is no difference."""
        alike = self.prompts.query == self.prompts.passage and not self.readings
        return ("passage",) if alike else ("query", "passage")

    @property
    def head(self) -> Head:
        """What makes the dense vectors."""
        head: Head = self._dense.head
        return head

    @property
    def dimensions(self) -> int:
        """Components of a dense vector."""
        return self._dense.declared.dimensions

    @property
    def similarity(self) -> Similarity:
        """How dense vectors are compared."""
        return self._dense.declared.similarity

    @property
    def normalized(self) -> bool:
        """Whether every dense vector has length 1."""
        return self._dense.declared.normalized

    @property
    def space_parts(self) -> SpaceParts:
        """What affects the dense vectors."""
        return self._dense.declared.space_parts

    @property
    def _dense(self) -> SourceOutput:
        found = next((each for each in self.outputs if each.declared.kind == "dense"), None)
        if found is None:
            kinds = ", ".join(each.declared.kind for each in self.outputs)
            raise ExportError(f"this needs an encoder of dense vectors, and the source gives {kinds}")
        return found
