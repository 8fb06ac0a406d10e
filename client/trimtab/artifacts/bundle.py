"""Bundles: immutable folders that the exporter writes and the server reads.

    REPOSITORY/NAME/VERSION/
        manifest.json     what this module defines
        tokenizer.json    a `tokenizers` file, without truncation and padding
        fp32/model.onnx   one folder a variant, its weights beside the graph

Every file is named in the manifest with its SHA-256 and its size, and checked when the bundle is read.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from trimtab.artifacts import ranges
from trimtab.artifacts.artifact import File, Interval, Kind, Struct, Trusted
from trimtab.errors import BundleError, InvalidArgument
from trimtab.kinds import JudgedBy, Pooling, Precision, Role, Similarity

FORMAT = 2  # 1: the space's name left the architecture out
MANIFEST = "manifest.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")
REQUIRED, OPTIONAL = {"input_ids", "attention_mask"}, {"token_type_ids"}  # of a graph's inputs
# The largest component of a vector of length 1, as float32 has it.
LONGEST_UNIT = 1.001


class Prompts(Struct, frozen=True):
    """What is put before a text of each role; empty for encoders without prompts."""

    query: str = ""
    passage: str = ""

    def of(self, role: Role | None) -> str:
        """What is put before a text of this role; nothing before one of none."""
        return "" if role is None else self.query if role == "query" else self.passage


class Speed(Struct, frozen=True):
    """Milliseconds for one run of a graph on `batch` texts of `length` tokens each; the median of several."""

    batch: ranges.Some
    length: ranges.Tokens
    milliseconds: ranges.Duration


class Parity(Struct, frozen=True):
    """How near the graph's vectors are to the source's own, over real texts in both roles."""

    texts: ranges.Count
    max_abs_diff: ranges.Difference
    min_cosine: ranges.Cosine
    batch_max_abs_diff: ranges.Difference  # a text alone against the same text padded among longer neighbours


class Speedup(Struct, frozen=True):
    """The source graph's time over the variant's, by one thread, the two run in turns, at one shape."""

    batch: ranges.Some
    length: ranges.Tokens
    factor: ranges.Factor


class Packed(Struct, frozen=True):
    """What vectors keep of the first variant's nDCG@10 as bytes, and as bits (by the Hamming distance)."""

    int8_limit: ranges.Limit  # the absolute component that becomes 127; what is beyond is clipped
    int8_ndcg: ranges.Kept
    ubinary_ndcg: ranges.Kept
    ubinary_documents_ndcg: ranges.Kept  # float32 queries and documents in bits


class Kept(Struct, frozen=True):
    """What a variant keeps of the first one's nDCG@10 over one set of queries and documents."""

    name: str
    kind: JudgedBy
    languages: tuple[str, ...]  # of the queries, as ISO 639-1 has them; none: unknown
    queries: ranges.Count
    documents: ranges.Count
    source_ndcg: ranges.Quality  # of the first variant itself
    ndcg: Interval
    query_only_ndcg: Interval


class Fidelity(Struct, frozen=True):
    """What a variant keeps of the bundle's first, over held-out queries and the documents that answer them.

    The four retentions are quality by the variant over quality by the first: both sides embedded by the
    variant (its own index), or only the queries, searched in the first variant's index. Each is that of the
    worst of `sets`; the set that is named is the worst by the nDCG.
    """

    retrieval: str  # the set of pairs
    queries: ranges.Count
    documents: ranges.Count
    source_ndcg: ranges.Quality  # nDCG@10 and R@10 of the first variant itself
    source_recall: ranges.Quality
    ndcg: Interval
    recall: Interval
    query_only_ndcg: Interval
    query_only_recall: Interval
    cosine: ranges.Cosine  # to the first variant's vectors: the mean, the least
    min_cosine: ranges.Cosine
    batch_min_cosine: ranges.Cosine  # a text alone against the same text among longer ones
    speedup: tuple[Speedup, ...]
    bytes: ranges.Bytes  # of the variant's files
    packed: Packed | None = None  # None: made before it was measured
    sets: tuple[Kept, ...] = ()  # that judged; none: made before there were several
    compared: ranges.Some = (
        1  # variants that this one was chosen among; the intervals are as wide as it takes
    )

    @property
    def provisional(self) -> bool:
        """Whether nothing may count on these figures: no kind of text was left out of making the variant."""
        return all(each.kind != "left out" for each in self.sets)


# Why a report card is provisional, and the cure.
TRAINED_ON = (
    "judged by the kind of text that it was made on, and on other kinds it keeps less; export it again where "
    "there are more kinds (`trimtab export --list-texts`)"
)


class Cell(Struct, frozen=True):
    """What is kept of the first variant's nDCG@10 by so many layers and dimensions, as `Fidelity` has it."""

    layers: ranges.Layer
    dimensions: ranges.Dimensions
    ndcg: ranges.Kept
    query_only_ndcg: ranges.Kept


class ReportCard(Struct, frozen=True):
    """What was measured when the bundle was made, and on what machine."""

    parity: Parity
    speed: tuple[Speed, ...]
    machine: str
    fidelity: Fidelity | None = None  # None: of the first variant, which the others are compared with
    cells: tuple[Cell, ...] = ()  # of the first variant: each depth and width


class Passes(Struct, frozen=True):
    """How a variant is made of the encoder: what is left of it, how it was trained, how it is written.

    Shares are those that stay, above 0 and at most 1.
    """

    name: str
    precision: Precision = "fp32"
    layers: tuple[ranges.Layer, ...] | None = None  # the numbers of those that stay, from 0; None: all
    heads: ranges.Share = 1.0
    ffn: ranges.Share = 1.0  # neurons of the feed-forward blocks
    shrp: ranges.Share = (
        1.0  # heads; behind them one feed-forward block takes the place of all else in a layer
    )
    low_rank: ranges.Share = (
        1.0  # of the variance of each layer's outputs, where two thin layers are less work
    )
    heal: ranges.Duration = 0.0  # million tokens that were trained on
    exit: ranges.Layer | None = None  # so many layers are computed, with a fitted head behind them; None: all
    width: ranges.Dimensions | None = None  # so many dimensions, on the principal axes; None: all


class States(Struct, frozen=True):
    """A second graph of a variant, which gives pooled inner states beside the embedding.

    Inputs and external data are the variant's own; its one output `embeddings` is float32 (n, dimensions +
    width): the embedding, then for each of `layers`, the embedding layer first, the mean of its hidden
    states over a text's tokens.
    """

    file: File
    layers: ranges.Layers
    width: ranges.Width  # of all layers together


class Variant(Struct, frozen=True):
    """One graph of the bundle, in a folder of its name.

    Its inputs are input_ids, attention_mask and perhaps token_type_ids, int64 (n, length); its output is
    `embeddings`, float32 (n, dimensions), pooled and, where the space asks for it, normalised.

    The first of `files` is the ONNX graph; the others are its external data.
    """

    name: ranges.Name
    precision: Precision
    inputs: Annotated[tuple[str, ...], Meta(max_length=3)]
    unpadded: bool  # its linear layers compute real tokens alone, so that padding costs next to nothing
    files: Annotated[tuple[File, ...], Meta(min_length=1, max_length=64)]
    report: ReportCard
    states: States | None = None  # None: the layers were not to be found in the graph
    space: ranges.Space | None = (
        None  # None: the bundle's own; others move the vectors, and are spaces of their own
    )
    passes: Passes | None = None  # None: the encoder as it is
    dimensions: ranges.Dimensions | None = None  # None: those of the bundle
    int8_limit: ranges.Limit | None = None  # as the bundle's, for this variant; None: the bundle's
    engines: Annotated[
        tuple[File, ...], Meta(max_length=1024)
    ] = ()  # of TensorRT, and its timing caches, for the GPUs that they were built on


class SpaceParts(Struct, frozen=True):
    """What places a vector and stands nowhere else in the manifest."""

    weights_sha256: ranges.Sha256  # of the tensors, and of the layers after the pooling
    # What tensors do not show. Of torch: the class, and config.json without what places no vector; of an ONNX
    # source: a digest of its nodes.
    structure: dict[str, Any]


class Provenance(Struct, frozen=True):
    """Where the bundle came from: enough to make it again."""

    source: str
    architecture: str
    recipe: str
    libraries: dict[str, str]


class Manifest(Struct, frozen=True):
    """What a bundle is. `space` is a digest of all that places the vectors: see `space_of`."""

    name: ranges.Name
    version: ranges.Version
    created: str
    space: ranges.Space
    space_parts: SpaceParts
    dimensions: ranges.Dimensions
    max_tokens: ranges.Tokens
    similarity: Similarity
    pooling: Pooling | None  # None: the source's graph pooled already
    normalized: bool
    prompts: Prompts
    tokenizer: File
    pad_id: ranges.TokenId
    # The absolute component that int8 output maps to 127, at full dimensions; what is beyond is clipped.
    int8_limit: ranges.Limit
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1, max_length=256)]
    provenance: Provenance
    format: int = FORMAT


class Bundle(Struct, frozen=True):
    """A bundle on disk."""

    path: Path
    manifest: Manifest

    def file(self, file: File) -> Path:
        """The absolute path of one of the bundle's files."""
        return self.path / file.path


BUNDLE = Kind(
    one="a bundle",
    noun="the bundle",
    manifest_name=MANIFEST,
    format=FORMAT,
    error=BundleError,
    make="trimtab export",
    redo="export it again",
)


def space_digest(
    parts: SpaceParts, *, tokenizer_sha256: str, prompts: Prompts, pooling: str | None, normalized: bool
) -> str:
    """The name of a space: 16 hexadecimal digits over all that places a text's vector.

    The graph's file is left out on purpose: another export of the same weights is the same space. So is
    `max_tokens`: it says how much of a text is read, and what is read has the same place under any.
    """
    content = {
        "weights": parts.weights_sha256,
        "structure": parts.structure,
        "tokenizer": tokenizer_sha256,
        "prompts": msgspec.to_builtins(prompts),
        "pooling": pooling,
        "normalized": normalized,
    }
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


def space_of(manifest: Manifest) -> str:
    """The name that a bundle's space has by what its manifest says."""
    return space_digest(
        manifest.space_parts,
        tokenizer_sha256=manifest.tokenizer.sha256,
        prompts=manifest.prompts,
        pooling=manifest.pooling,
        normalized=manifest.normalized,
    )


def variant_space(space: str, files: tuple[File, ...]) -> str:
    """The name of a variant's space: of the bundle's, and of the graph and weights that move it."""
    parts = [space, *(file.sha256 for file in files)]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]


def check_name(name: str) -> str:
    """`name` where it can name an encoder: it becomes a folder, a metric label and a part of URLs."""
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            f"encoder name {name!r} cannot be used: lower-case letters, digits, '.', '_' and '-', "
            "a letter or digit first, at most 128"
        )
    return name


def read(
    path: Path, *, verify: bool = True, within: Path | None = None, trusted: Trusted | None = None
) -> Bundle:
    """Read the bundle in the folder `path`; with `verify`, hash every file it names.

    Raises BundleError, which names the file and says what to do, where the folder is not a whole and
    untouched bundle, leads out of the folder `within`, or has a manifest that is not `trusted`.
    """
    manifest = BUNDLE.manifest(path, Manifest, within=within, trusted=trusted)
    if wrong := contradiction(manifest):
        raise BundleError(f"{path / MANIFEST} {wrong}. Copy it again, or export the encoder again")
    for file in files(manifest):
        BUNDLE.check(path, file, verify)
    return Bundle(path=path, manifest=manifest)


def contradiction(manifest: Manifest) -> str:
    """What a manifest says that cannot be true beside what else it says; "" where all fits together."""
    return next((what for wrong, what in _doubts(manifest) if wrong), "")


def _doubts(manifest: Manifest) -> Iterator[tuple[bool, str]]:
    """Whether something is wrong, and what it would be."""
    first, *rest = manifest.variants
    follows, said = space_of(manifest), "and what it says of prompts, pooling, tokenizer and weights makes"
    yield follows != manifest.space, f"names the space {manifest.space}, {said} {follows}: it was edited"
    names = {variant.name for variant in manifest.variants}
    yield len(names) < len(manifest.variants), "names two variants alike"
    own = first.space is not None or first.dimensions not in (None, manifest.dimensions)
    yield own, f"gives the first variant, {first.name}, a space or dimensions of its own"
    for variant in rest:
        follows, whose = variant_space(manifest.space, variant.files), f"of variant {variant.name}"
        said = f"names the space {variant.space} {whose}, and its files make {follows}: it was edited"
        yield follows != variant.space, said
    too_long = manifest.normalized and manifest.int8_limit > LONGEST_UNIT
    yield too_long, f"gives vectors of length 1 the int8_limit {manifest.int8_limit}"
    for variant in manifest.variants:
        for wrong, what in _doubts_of(manifest, variant):
            yield wrong, f"says that variant {variant.name} {what}"
    entries = {file.path: file for file in files(manifest)}
    differ = any(entries[file.path] != file for file in files(manifest))
    yield differ or MANIFEST in entries, "gives one file two contents"


def _doubts_of(manifest: Manifest, variant: Variant) -> Iterator[tuple[bool, str]]:
    dimensions, limit = variant.dimensions or manifest.dimensions, variant.int8_limit or 0
    inputs = set(variant.inputs)
    other = len(inputs) < len(variant.inputs) or not REQUIRED <= inputs <= REQUIRED | OPTIONAL
    yield other, f"reads {', '.join(variant.inputs)}"
    more = dimensions > manifest.dimensions
    yield more, f"has {dimensions} dimensions, and the encoder {manifest.dimensions}"
    too_long = manifest.normalized and limit > LONGEST_UNIT
    yield too_long, f"has vectors of length 1 and the int8_limit {limit}"
    width = variant.passes.width if variant.passes is not None else None
    yield width not in (None, dimensions), f"has {dimensions} dimensions, and was made {width} wide"
    home = PurePosixPath(variant.files[0].path).parent
    for file in (*variant.files, *variant.engines):
        away = not PurePosixPath(file.path).is_relative_to(home)
        yield away, f"has {file.path}, which does not lie beside its graph"
    if (states := variant.states) is not None:
        few = states.width < states.layers
        yield few, f"has {states.width} components of states in {states.layers} layers"
        away = PurePosixPath(states.file.path).parent != home
        yield away, f"has {states.file.path}, which does not lie beside its graph"


def files(manifest: Manifest) -> Iterator[File]:
    """Every file that a manifest names."""
    yield manifest.tokenizer
    for variant in manifest.variants:
        yield from variant.files
        yield from variant.engines
        if variant.states is not None:
            yield variant.states.file


def versions(repository: Path, unreadable: dict[str, str] | None = None) -> Iterator[tuple[str, int, Path]]:
    """Every (name, version, folder) of a repository, in order; folders with other names are not bundles.

    An encoder's folder that cannot be read comes into `unreadable`, by its name, with the reason; where that
    is None, it raises BundleError.
    """
    if not repository.is_dir():
        raise BundleError(f"the repository {repository} is not a folder")
    for encoder in sorted(repository.iterdir()):
        if not NAME.fullmatch(encoder.name):
            continue
        try:
            names = [entry.name for entry in encoder.iterdir()] if encoder.is_dir() else []
        except OSError as error:
            why = f"{encoder} cannot be read: {error.strerror}"
            if unreadable is None:
                raise BundleError(why) from None
            unreadable[encoder.name] = why
            continue
        for number in sorted(int(name) for name in names if VERSION.fullmatch(name)):
            yield encoder.name, number, encoder / str(number)
