"""Manifests of bundles that read text and give dense vectors, as tests make them up."""

from collections.abc import Sequence
from typing import Any

import msgspec

from trimtab.artifacts import space
from trimtab.artifacts.artifact import File
from trimtab.artifacts.manifest import (
    BundleVariant,
    Input,
    Manifest,
    Moved,
    Output,
    Prompts,
    Provenance,
    SpaceParts,
    Tensor,
    Tower,
)
from trimtab.kinds import Runtime

TENSORS = {"dense": Tensor(name="embeddings")}


def text(tokenizer: File, most: int, prompts: Prompts | None = None) -> Input:
    """Texts of `most` tokens."""
    return Input(
        name="text", kind="text", processor=tokenizer, most_units=most, prompts=prompts or Prompts(),
        settings={"pad_id": 0},
    )  # fmt: skip


def dense(given: Input, parts: SpaceParts, dimensions: int) -> Output:
    """Vectors of length 1."""
    output = Output(
        name="dense", kind="dense", space="", space_parts=parts, dimensions=dimensions, similarity="cosine",
        pooling="mean", normalized=True, int8_limit=0.6,
    )  # fmt: skip
    return space.named(output, [given])


def moved(
    output: Output, files: Sequence[File], runner: Runtime = "onnx", **changes: Any
) -> tuple[Moved, ...]:
    """What a variant of these files makes of an output."""
    return (Moved(output=output.name, space=space.of_variant(output.space, files, runner), **changes),)


def manifest(
    name: str, version: int, given: Input, output: Output, variants: Sequence[BundleVariant]
) -> Manifest:
    """Of one tower."""
    return Manifest(
        name=name, version=version, created="2026-01-01T00:00:00+00:00", inputs=(given,), outputs=(output,),
        towers=(Tower(input=given.name, outputs=(output.name,), variants=tuple(variants)),),
        provenance=Provenance(source="seeded", architecture="none", recipe="none", libraries={}),
    )  # fmt: skip


def changed(manifest: Manifest, *, prompts: Prompts | None = None, **output: Any) -> Manifest:
    """The manifest with other prompts, or other fields of its output, and the space that follows."""
    given = manifest.input
    if prompts is not None:
        given = msgspec.structs.replace(given, prompts=prompts)
    other = msgspec.structs.replace(manifest.output, **output)
    other = space.named(other, [given])
    return msgspec.structs.replace(manifest, inputs=(given,), outputs=(other,))


def with_variants(manifest: Manifest, variants: Sequence[BundleVariant]) -> Manifest:
    """The manifest with these variants instead."""
    tower = msgspec.structs.replace(manifest.towers[0], variants=tuple(variants))
    return msgspec.structs.replace(manifest, towers=(tower,))
