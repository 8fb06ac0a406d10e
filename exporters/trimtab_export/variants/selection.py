"""Selects the variants of a bundle besides the first: by a recipe, or by a search above a floor of
quality."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import chain
from pathlib import Path

import msgspec

from trimtab.artifacts import artifact, cards, space
from trimtab.artifacts import manifest as manifests
from trimtab.artifacts.artifact import File
from trimtab.artifacts.manifest import Passes
from trimtab.errors import ExportError
from trimtab_export import write
from trimtab_export.graph import to_onnx
from trimtab_export.graph.head import OUTPUT
from trimtab_export.source import Device, Source, Target
from trimtab_export.tokens import Collator
from trimtab_export.variants import cells, kept, material, recipe
from trimtab_export.variants.candidates import VariantCandidate, VariantMaker
from trimtab_export.variants.fidelity import Reference
from trimtab_export.variants.make import Workshop
from trimtab_export.variants.search import search

JUDGED = "judged.npz"


@dataclass(frozen=True)
class VariantRequest:
    """What the user asks for besides the encoder as it is: a `recipe`, a search above `min_quality`, or
    both."""

    recipe: tuple[Passes, ...] = ()
    min_quality: tuple[float, ...] = ()
    target: Target = "throughput"
    device: Device = "cpu"
    heal_minutes: float = 16.0
    pairs: Path | None = None
    texts: Path | None = None
    tensorrt: bool = False

    @property
    def anything(self) -> bool:
        return bool(self.recipe or self.min_quality)


@dataclass(frozen=True)
class Selected:
    """The variants for the bundle, all that were measured, and what is kept at each depth and width."""

    variants: list[VariantCandidate]
    measured: list[VariantCandidate]
    cells: tuple[cards.Cell, ...]
    int8_limit: float | None  # of the encoder itself, over the texts; None: nothing was asked for


def select(
    wanted: VariantRequest,
    source: Source,
    graph: Path,
    joined: Path | None,
    scratch: Path,
    tell: Callable[[str], object],
) -> Selected:
    """Make and measure what is asked for.

    Raises ExportError, naming the variant, if one of a recipe cannot be made.

    Args:
        graph: the encoder's own, in its final form.
        joined: the same with pooled inner states, if there is one.
        scratch: the folder for intermediate results, also of an interrupted run.
    """
    texts = material.gather(wanted.pairs, wanted.texts)
    place = scratch / _key(source, texts)
    place.mkdir(parents=True, exist_ok=True)
    collator = Collator(source.tokenizer, source.max_tokens)
    tell(f"embedding what judges: {', '.join(pairs.name for pairs in texts.judged_by)}")
    reference = Reference.of(graph, source, collator, texts.judged_by, place / JUDGED)
    for pairs in texts.judged_by:
        if pairs not in reference.sets:
            tell(f"{pairs.name}: the encoder itself finds next to nothing there, and it judges nothing")
    maker = VariantMaker(Workshop(source, graph, joined, texts.kinds, texts.watched, place), reference, tell)
    found: list[VariantCandidate] = []
    for passes in wanted.recipe:
        try:
            found.append(maker.candidate(passes))
        except ExportError as error:
            raise ExportError(f"the variant {passes.name}: {error}") from error
    limit = maker.int8_limit(graph)
    best, seen = list[VariantCandidate](), list[VariantCandidate]()
    if wanted.min_quality:
        best, seen = search(maker, wanted.min_quality, wanted.target, wanted.device, wanted.heal_minutes)
    every: tuple[cards.Cell, ...] = ()
    if wanted.min_quality or any(recipe.leaves(passes) for passes in wanted.recipe):
        tell("measuring every depth and width")  # last, so that the first variant is there soon
        every = cells.measure(maker.shop, reference)
    asked = {candidate.passes.name for candidate in found}
    best, seen = (
        [among(each, len(seen)) for each in some if each.passes.name not in asked] for some in (best, seen)
    )
    return Selected([*found, *best], [*found, *seen], every, limit)


def among(candidate: VariantCandidate, compared: int) -> VariantCandidate:
    """A candidate that was chosen among so many."""
    return replace(candidate, report=kept.among(candidate.report, compared))


def put(
    candidate: VariantCandidate, folder: Path, output: manifests.Output, first: Sequence[File]
) -> manifests.BundleVariant:
    """Put a variant's files into the bundle in `folder`, and return its entry in the manifest.

    Args:
        output: the bundle's output, which the variant gives in a space of its own.
        first: the files of the bundle's first variant, which are used again if the variant has the same.
    """
    passes = candidate.passes
    files, target = tuple(first), folder / first[0].path
    if [artifact.digest(path).sha256 for path in candidate.files] != [each.sha256 for each in first]:
        target = folder / passes.name / candidate.files[0].name
        shutil.copytree(candidate.files[0].parent, target.parent, copy_function=os.link)
        files = tuple(write.entry(folder, target.with_name(path.name)) for path in candidate.files)
    return manifests.BundleVariant(
        name=passes.name,
        precision=passes.precision,
        inputs=to_onnx.inputs_of(target),
        tensors={output.name: manifests.Tensor(name=OUTPUT)},
        unpadded=candidate.unpadded,
        files=files,
        report=candidate.report,
        runner=passes.runner,
        passes=passes,
        moved=(
            manifests.Moved(
                output=output.name,
                space=space.of_variant(output.space, files, passes.runner),
                dimensions=passes.width,
                int8_limit=candidate.fidelity.packed.int8_limit if candidate.fidelity.packed else None,
            ),
        ),
    )


def _key(source: Source, texts: material.Material) -> str:
    """A key for what was made from this encoder with these texts."""
    digest = hashlib.sha256()
    parts = (
        metadata.version("trimtab"),
        source.space_parts,
        source.tokenizer.json,
        source.max_tokens,
        source.prompts,
    )
    digest.update(msgspec.json.encode(parts, order="sorted"))
    pairs = [*texts.judged_by, *([texts.watched] if texts.watched is not None else [])]
    for text in chain.from_iterable([*(each.texts for each in pairs), *texts.kinds]):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]
