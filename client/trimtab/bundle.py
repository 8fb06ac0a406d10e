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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from trimtab.errors import BundleError, InvalidArgument, TrimtabError

FORMAT = 2  # 1: the space's name left the architecture out
MANIFEST = "manifest.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
Pooling = Literal["mean", "cls", "last", "max"]
# int8: linear layers multiply bytes; int8-weights, int4-weights: weights in blocks; fp16: for GPUs;
# bf16: weights in bfloat16, computed in float32;
# int8-qdq: int8 as Q and DQ nodes around the products, for TensorRT
Precision = Literal["fp32", "int8", "int8-weights", "int4-weights", "fp16", "bf16", "int8-qdq"]


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of what a manifest holds."""


class File(Struct, frozen=True):
    """A file of the bundle: its path relative to the manifest, its content, its size in bytes."""

    path: str
    sha256: str
    size: int


class _Header(msgspec.Struct):
    """What a manifest of any format has."""

    format: int


class Versioned(Protocol):
    """A manifest: it says of which format it is."""

    @property
    def format(self) -> int: ...


AnyManifest = TypeVar("AnyManifest", bound=Versioned)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of immutable folder with a manifest, and how its faults are told."""

    one: str  # as messages call it: "a bundle"
    noun: str  # "the bundle"
    manifest_name: str
    format: int
    error: type[TrimtabError]
    make: str  # the command that makes one
    redo: str  # how to make it anew: "export it again"

    def manifest(self, path: Path, type: type[AnyManifest]) -> AnyManifest:
        """The manifest of the folder `path`; the kind's error where it cannot be read."""
        manifest_path = path / self.manifest_name
        try:
            content = manifest_path.read_bytes()
            found = msgspec.json.decode(content, type=_Header).format
            if found != self.format:
                raise self.error(
                    f"{manifest_path} is of format {found}, this Trimtab reads format {self.format}: "
                    f"{self.redo} with this version"
                )
            return msgspec.json.decode(content, type=type)
        except FileNotFoundError:
            raise self.error(
                f"{path} is not {self.one}: it has no {self.manifest_name}. Make one with `{self.make}`"
            ) from None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self.error(f"{manifest_path} cannot be read: {error}. Copy it, or {self.redo}") from None

    def check(self, folder: Path, file: File, verify: bool) -> None:
        """Raise the kind's error where a file that the manifest names is not there as it was written."""
        relative = PurePosixPath(file.path)
        if relative.is_absolute() or ".." in relative.parts:
            raise self.error(
                f"{folder / self.manifest_name} names {file.path!r}, which lies outside {self.noun}"
            )
        path = folder / file.path
        if not path.resolve().is_relative_to(folder.resolve()):
            raise self.error(f"{path} is a link that leads out of {self.noun}")
        if not path.is_file():
            raise self.error(f"{path} is missing: {self.noun} is not whole. Copy it, or {self.redo}")
        if path.stat().st_size != file.size:
            raise self.error(
                f"{path} has {path.stat().st_size} bytes, its manifest says {file.size}: "
                f"the file was changed or cut off. Copy {self.noun} again, or {self.redo}"
            )
        if verify and digest(path).sha256 != file.sha256:
            raise self.error(
                f"{path} does not have the SHA-256 of its manifest: the file was changed. "
                f"Copy {self.noun} again, or {self.redo}"
            )


class Prompts(Struct, frozen=True):
    """What is put before a text of each role; empty for encoders without prompts."""

    query: str = ""
    passage: str = ""


class Speed(Struct, frozen=True):
    """Milliseconds for one run of a graph on `batch` texts of `length` tokens each; the median of several."""

    batch: int
    length: int
    milliseconds: float


class Parity(Struct, frozen=True):
    """How near the graph's vectors are to the source's own, over real texts in both roles."""

    texts: int
    max_abs_diff: float
    min_cosine: float
    batch_max_abs_diff: float  # a text alone against the same text padded among longer neighbours


class Interval(Struct, frozen=True):
    """A figure with its 95% interval, by resampling the queries."""

    value: float
    low: float
    high: float


class Speedup(Struct, frozen=True):
    """The source graph's time over the variant's, by one thread, the two run in turns, at one shape."""

    batch: int
    length: int
    factor: float


class Packed(Struct, frozen=True):
    """What vectors keep of the first variant's nDCG@10 as bytes, and as bits (by the Hamming distance)."""

    int8_limit: float  # the absolute component that becomes 127; what is beyond is clipped
    int8_ndcg: float
    ubinary_ndcg: float
    ubinary_documents_ndcg: float  # float32 queries and documents in bits


class Fidelity(Struct, frozen=True):
    """What a variant keeps of the bundle's first, over held-out queries and the documents that answer them.

    The four retentions are quality by the variant over quality by the first: both sides embedded by the
    variant (its own index), or only the queries, searched in the first variant's index.
    """

    retrieval: str  # the set of pairs
    queries: int
    documents: int
    source_ndcg: float  # nDCG@10 and R@10 of the first variant itself
    source_recall: float
    ndcg: Interval
    recall: Interval
    query_only_ndcg: Interval
    query_only_recall: Interval
    cosine: float  # to the first variant's vectors: the mean, the least
    min_cosine: float
    batch_min_cosine: float  # a text alone against the same text among longer ones
    speedup: tuple[Speedup, ...]
    bytes: int  # of the variant's files
    packed: Packed | None = None  # None: made before it was measured


class Cell(Struct, frozen=True):
    """What is kept of the first variant's nDCG@10 by so many layers and dimensions, as `Fidelity` has it."""

    layers: int
    dimensions: int
    ndcg: float
    query_only_ndcg: float


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
    layers: tuple[int, ...] | None = None  # the numbers of those that stay, from 0; None: all
    heads: float = 1.0
    ffn: float = 1.0  # neurons of the feed-forward blocks
    shrp: float = 1.0  # heads; behind them one feed-forward block takes the place of all else in a layer
    low_rank: float = 1.0  # of the variance of each layer's outputs, where two thin layers are less work
    heal: int = 0  # how often the texts are gone through in training
    exit: int | None = None  # so many layers are computed, with a fitted head behind them; None: all
    width: int | None = None  # so many dimensions, on the principal axes; None: all


class States(Struct, frozen=True):
    """A second graph of a variant, which gives pooled inner states beside the embedding.

    Inputs and external data are the variant's own; its one output `embeddings` is float32 (n, dimensions +
    width): the embedding, then for each of `layers`, the embedding layer first, the mean of its hidden
    states over a text's tokens.
    """

    file: File
    layers: int
    width: int  # of all layers together


class Variant(Struct, frozen=True):
    """One graph of the bundle.

    Its inputs are input_ids, attention_mask and perhaps token_type_ids, int64 (n, length); its output is
    `embeddings`, float32 (n, dimensions), pooled and, where the space asks for it, normalised.

    The first of `files` is the ONNX graph; the others are its external data.
    """

    name: str
    precision: Precision
    inputs: tuple[str, ...]
    unpadded: bool  # its linear layers compute real tokens alone, so that padding costs next to nothing
    files: tuple[File, ...]
    report: ReportCard
    states: States | None = None  # None: the layers were not to be found in the graph
    space: str | None = None  # None: the bundle's own; others move the vectors, and are spaces of their own
    passes: Passes | None = None  # None: the encoder as it is
    dimensions: int | None = None  # None: those of the bundle
    int8_limit: float | None = None  # as the bundle's, for this variant; None: the bundle's
    engines: tuple[File, ...] = ()  # of TensorRT, and its timing caches, for the GPUs that they were built on


class SpaceParts(Struct, frozen=True):
    """What places a vector and stands nowhere else in the manifest."""

    weights_sha256: str  # of the tensors, and of the layers after the pooling
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

    name: str
    version: int
    created: str
    space: str
    space_parts: SpaceParts
    dimensions: int
    max_tokens: int
    similarity: Similarity
    pooling: Pooling | None  # None: the source's graph pooled already
    normalized: bool
    prompts: Prompts
    tokenizer: File
    pad_id: int
    # The absolute component that int8 output maps to 127, at full dimensions; what is beyond is clipped.
    int8_limit: float
    variants: tuple[Variant, ...]
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


def digest(path: Path) -> File:
    """The manifest's entry for a file, its path taken as it stands."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(path=path.as_posix(), sha256=sha256, size=path.stat().st_size)


def check_name(name: str) -> str:
    """`name` where it can name an encoder: it becomes a folder, a metric label and a part of URLs."""
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            f"encoder name {name!r} cannot be used: lower-case letters, digits, '.', '_' and '-', "
            "a letter or digit first, at most 128"
        )
    return name


def read(path: Path, *, verify: bool = True) -> Bundle:
    """Read the bundle in the folder `path`; with `verify`, hash every file it names.

    Raises BundleError, which names the file and says what to do, where the folder is not a whole and
    untouched bundle.
    """
    manifest = BUNDLE.manifest(path, Manifest)
    _check_spaces(path, manifest)
    for file in files(manifest):
        BUNDLE.check(path, file, verify)
    return Bundle(path=path, manifest=manifest)


def _check_spaces(path: Path, manifest: Manifest) -> None:
    """Refuse a manifest whose spaces do not follow from what else it says: it was edited."""
    rest = [
        (f"space of variant {variant.name}", variant.space, variant_space(manifest.space, variant.files))
        for variant in manifest.variants[1:]
    ]
    for whose, said, follows in [("space", manifest.space, space_of(manifest)), *rest]:
        if said != follows:
            raise BundleError(
                f"{path / MANIFEST} names the {whose} {said}, and what it says of prompts, pooling, "
                f"tokenizer, weights and graphs makes {follows}: it was edited. Copy it again, or export the "
                "encoder with other options"
            )


def files(manifest: Manifest) -> Iterator[File]:
    """Every file that a manifest names."""
    yield manifest.tokenizer
    for variant in manifest.variants:
        yield from variant.files
        yield from variant.engines
        if variant.states is not None:
            yield variant.states.file


def versions(repository: Path) -> Iterator[tuple[str, int, Path]]:
    """Every (name, version, folder) of a repository, in order; folders with other names are not bundles."""
    if not repository.is_dir():
        raise BundleError(f"the repository {repository} is not a folder")
    for encoder in sorted(repository.iterdir()):
        if NAME.fullmatch(encoder.name) and encoder.is_dir():
            numbers = [int(entry.name) for entry in encoder.iterdir() if VERSION.fullmatch(entry.name)]
            for number in sorted(numbers):
                yield encoder.name, number, encoder / str(number)
