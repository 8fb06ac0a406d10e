"""The manifest of a bundle: which inputs it reads, which outputs it gives, and by which graphs.

    inputs     what can be embedded: its kind, the file that prepares it, how much of it is read
    outputs    what is computed from it: its kind, its space, its size
    towers     which input gives which outputs, by a graph in one or more variants

Most bundles have one of each: text, a dense vector, and a tower between them. The properties of Manifest are
shortcuts to these.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from trimtab.artifacts import ranges
from trimtab.artifacts.artifact import File, Struct
from trimtab.artifacts.cards import ReportCard
from trimtab.errors import FailedPrecondition
from trimtab.inputs.text import TextSettings
from trimtab.kinds import Pooling, Precision, Role, Runtime, Similarity

FORMAT = 3  # 2: text in, one dense vector out; 1: the space's name left the architecture out

Settings: TypeAlias = Annotated[dict[str, Any], Meta(max_length=64)]


class Prompts(Struct, frozen=True):
    """The prefix of texts in each role; empty for encoders without prompts."""

    query: str = ""
    passage: str = ""

    def of(self, role: Role | None) -> str:
        """The prefix of a text in this role; empty for a text without a role."""
        return "" if role is None else self.query if role == "query" else self.passage


class Input(Struct, frozen=True):
    """Something that can be embedded.

    `kind` says what it is; `settings` are the kind's own. `processor` is the file that prepares it: for text,
    a `tokenizers` file without truncation and padding. `most_units` is how much of an item is read: for text,
    tokens.
    """

    name: ranges.Label
    kind: ranges.Label
    processor: File | None
    most_units: ranges.Tokens
    prompts: Prompts = Prompts()
    settings: Settings = msgspec.field(default_factory=dict)


class SpaceParts(Struct, frozen=True):
    """What affects vectors and is recorded nowhere else in the manifest."""

    weights_sha256: ranges.Sha256  # of the tensors, and of the layers after the pooling
    # What tensors do not show. For torch: the class, and config.json without what does not affect vectors;
    # for an ONNX source: a digest of its nodes.
    structure: dict[str, Any]


class Output(Struct, frozen=True):
    """Something computed from an item, in a space of its own: see `trimtab.artifacts.space`.

    `kind` says what it is; `settings` are the kind's own, and all of them affect vectors.
    """

    name: ranges.Label
    kind: ranges.Label
    space: ranges.Space
    space_parts: SpaceParts
    dimensions: ranges.Size  # components of a vector; for a sparse one, including the zeros
    similarity: Similarity
    pooling: Pooling | None  # None: the source's graph pooled already
    normalized: bool
    # The absolute component that int8 maps to 127, at full dimensions; larger ones are clipped. None: not
    # calibrated.
    int8_limit: ranges.Limit | None = None
    settings: Settings = msgspec.field(default_factory=dict)


class Tensor(Struct, frozen=True):
    """Where a graph gives a column: the tensor's name and, if items have several rows, the name of their
    offsets: int64 (items + 1,), from 0 to the number of rows."""

    name: ranges.Path
    offsets: ranges.Path | None = None


class Passes(Struct, frozen=True):
    """How a variant is made from the encoder: what is kept, how it was trained, how it is written.

    Shares are of what is kept, above 0 and at most 1.
    """

    name: str
    precision: Precision = "fp32"
    runner: Runtime = "onnx"
    layers: tuple[ranges.Layer, ...] | None = None  # the numbers of the kept layers, from 0; None: all
    heads: ranges.Share = 1.0
    ffn: ranges.Share = 1.0  # neurons of the feed-forward blocks
    shrp: ranges.Share = 1.0  # heads; after them, one feed-forward block replaces everything else in a layer
    low_rank: ranges.Share = (
        1.0  # of the variance of each layer's outputs, wherever two thin layers are less work
    )
    heal: ranges.Duration = 0.0  # million tokens of training
    exit: ranges.Layer | None = None  # how many layers are computed, followed by a fitted head; None: all
    width: ranges.Dimensions | None = None  # how many dimensions, on the principal axes; None: all


class States(Struct, frozen=True):
    """A second graph of a variant, which also gives pooled inner states.

    Inputs and external data are the variant's own. The tensor of its dense vectors is wider, float32 (n,
    dimensions + width): the embedding, then for each of `layers`, from the embedding layer on, the mean of
    its hidden states over a text's tokens.
    """

    file: File
    layers: ranges.Layers
    width: ranges.Width  # of all layers together


class Moved(Struct, frozen=True):
    """An output of a variant that is in a space of its own."""

    output: ranges.Label
    space: ranges.Space
    dimensions: ranges.Size | None = None  # None: as many as the encoder's
    int8_limit: ranges.Limit | None = None  # None: the encoder's, if it has as many dimensions

    def applied(self, output: Output) -> Output:
        """The output as the variant gives it."""
        # The range was calibrated with all dimensions; the first components of a narrower variant are larger.
        limit = output.int8_limit if self.dimensions in (None, output.dimensions) else None
        return msgspec.structs.replace(
            output,
            space=self.space,
            dimensions=self.dimensions or output.dimensions,
            int8_limit=self.int8_limit or limit,
        )


class BundleVariant(Struct, frozen=True):
    """A graph of a tower, in a folder with its name.

    `inputs` are the graph's inputs, filled by the kind of the tower's input; `tensors` are where it gives the
    columns of the tower's outputs. The first variant's outputs are as the bundle says; the outputs of other
    variants are in `moved`. The first of `files` is the graph; the others are its external data.
    """

    name: ranges.Name
    precision: Precision
    inputs: Annotated[tuple[ranges.Path, ...], Meta(min_length=1, max_length=16)]
    tensors: Annotated[dict[ranges.Path, Tensor], Meta(min_length=1, max_length=64)]
    unpadded: bool  # its linear layers compute only real tokens, so padding costs next to nothing
    files: Annotated[tuple[File, ...], Meta(min_length=1, max_length=64)]
    report: ReportCard
    runner: Runtime = "onnx"
    states: States | None = None  # None: the layers were not found in the graph
    passes: Passes | None = None  # None: the encoder as it is
    moved: Annotated[tuple[Moved, ...], Meta(max_length=64)] = ()
    engines: Annotated[
        tuple[File, ...], Meta(max_length=1024)
    ] = ()  # TensorRT engines and timing caches, for the GPUs that they were built on


class Tower(Struct, frozen=True):
    """Which outputs an input gives, and the graphs that compute them; the first is the encoder itself."""

    input: ranges.Label
    outputs: Annotated[tuple[ranges.Label, ...], Meta(min_length=1, max_length=64)]
    variants: Annotated[tuple[BundleVariant, ...], Meta(min_length=1, max_length=256)]


class Provenance(Struct, frozen=True):
    """Where the bundle came from: enough to make it again."""

    source: str
    architecture: str
    recipe: str
    libraries: dict[str, str]


class Manifest(Struct, frozen=True):
    """The manifest of a bundle.

    `input` and `output` are the first ones, which are the defaults, and `variants` are those of the first
    tower. There are shortcuts: `space`, `dimensions` and so on are the output's; `max_tokens`, `prompts` and
    the tokenizer are the input's.
    """

    name: ranges.Name
    version: ranges.Version
    created: str
    inputs: Annotated[tuple[Input, ...], Meta(min_length=1, max_length=16)]
    outputs: Annotated[tuple[Output, ...], Meta(min_length=1, max_length=64)]
    towers: Annotated[tuple[Tower, ...], Meta(min_length=1, max_length=16)]
    provenance: Provenance
    format: int = FORMAT

    @property
    def input(self) -> Input:
        """The first input."""
        return self.inputs[0]

    @property
    def output(self) -> Output:
        """The output that is given if none is named."""
        return self.outputs[0]

    @property
    def variants(self) -> tuple[BundleVariant, ...]:
        """The graphs; the encoder itself comes first."""
        return self.towers[0].variants

    @property
    def space(self) -> str:
        """The space of the vectors."""
        return self.output.space

    @property
    def dimensions(self) -> int:
        """Components of a vector."""
        return self.output.dimensions

    @property
    def similarity(self) -> Similarity:
        """How to compare vectors."""
        return self.output.similarity

    @property
    def pooling(self) -> Pooling | None:
        """How a vector is made from token states; None: the source's graph pooled already."""
        return self.output.pooling

    @property
    def normalized(self) -> bool:
        """Whether every vector has length 1."""
        return self.output.normalized

    @property
    def int8_limit(self) -> float | None:
        """The absolute component that int8 maps to 127; None: not calibrated."""
        return self.output.int8_limit

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read, including special tokens."""
        return self.input.most_units

    @property
    def prompts(self) -> Prompts:
        """The prefix of texts in each role."""
        return self.input.prompts

    @property
    def tokenizer(self) -> File:
        """The tokenizer's file. FailedPrecondition if the input is not text."""
        if self.input.kind != "text" or self.input.processor is None:
            raise FailedPrecondition(f"{self.name} reads no text, but {self.input.kind}: it has no tokenizer")
        return self.input.processor

    @property
    def pad_id(self) -> int:
        """The token that pads the shorter rows of a batch."""
        return msgspec.convert(self.input.settings, TextSettings).pad_id

    def files(self) -> Iterator[File]:
        """Every file that the manifest names, each once: variants may share files."""
        return iter(dict.fromkeys(self._files()))

    def _files(self) -> Iterator[File]:
        for given in self.inputs:
            if given.processor is not None:
                yield given.processor
        for tower in self.towers:
            for variant in tower.variants:
                yield from variant.files
                yield from variant.engines
                if variant.states is not None:
                    yield variant.states.file

    def outputs_of(self, tower: Tower) -> tuple[Output, ...]:
        """The outputs that a tower gives, in its order."""
        by_name: Mapping[str, Output] = {output.name: output for output in self.outputs}
        return tuple(by_name[name] for name in tower.outputs)
