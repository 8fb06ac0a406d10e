"""The variants beside the first one of a bundle: by a recipe, or by a search above a floor of quality."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trimtab import bundle as bundles
from trimtab.bundle import Passes
from trimtab.errors import ExportError
from trimtab_export import write
from trimtab_export.graph import to_onnx
from trimtab_export.source import Device, Source, Target
from trimtab_export.tokens import Batcher
from trimtab_export.variants import material
from trimtab_export.variants.candidates import Bench, Candidate
from trimtab_export.variants.fidelity import Yardstick
from trimtab_export.variants.make import Workshop
from trimtab_export.variants.search import search


@dataclass(frozen=True)
class Wanted:
    """What the user asks for beside the encoder as it is: `recipe`, or a search above `min_quality`."""

    recipe: tuple[Passes, ...] = ()
    min_quality: float | None = None
    target: Target = "throughput"
    device: Device = "cpu"
    heal: int = 1
    pairs: Path | None = None
    texts: Path | None = None

    @property
    def anything(self) -> bool:
        return bool(self.recipe) or self.min_quality is not None


def select(
    wanted: Wanted,
    source: Source,
    graph: Path,
    joined: Path | None,
    scratch: Path,
    tell: Callable[[str], object],
) -> tuple[list[Candidate], list[Candidate]]:
    """The variants for the bundle, and all that were measured.

    Raises ExportError, which names the variant, where one of a recipe cannot be made.

    Args:
        graph: the encoder's own, in its final form.
        joined: the same with pooled inner states, where there is one.
        scratch: the folder where an interrupted run left what it had, and this one may.
    """
    texts = material.gather(wanted.pairs, wanted.texts)
    place = scratch / _key(source, texts)
    place.mkdir(parents=True, exist_ok=True)
    batcher = Batcher(source.tokenizer, source.max_tokens)
    tell(f"embedding {len(texts.pairs.documents)} documents of {texts.pairs.name} to compare with")
    yardstick = Yardstick.of(graph, source, batcher, texts.pairs)
    bench = Bench(Workshop(source, graph, joined, texts.texts, place), yardstick, tell)
    if wanted.min_quality is not None:
        return search(bench, wanted.min_quality, wanted.target, wanted.device, wanted.heal)
    found = []
    for passes in wanted.recipe:
        try:
            found.append(bench.candidate(passes))
        except ExportError as error:
            raise ExportError(f"the variant {passes.name}: {error}") from error
    return found, found


def put(candidate: Candidate, folder: Path, space: str) -> bundles.Variant:
    """Put a variant's files into the bundle in `folder`, and describe it.

    Args:
        space: the bundle's own.
    """
    passes = candidate.passes
    target = folder / passes.name
    shutil.copytree(candidate.files[0].parent, target, copy_function=os.link)
    files = tuple(write.entry(folder, target / path.name) for path in candidate.files)
    return bundles.Variant(
        name=passes.name,
        precision=passes.precision,
        inputs=to_onnx.inputs_of(target / candidate.files[0].name),
        unpadded=candidate.unpadded,
        files=files,
        report=candidate.report,
        space=bundles.variant_space(space, files),
        passes=passes,
        dimensions=passes.width,
    )


def _key(source: Source, texts: material.Material) -> str:
    """A name for what was made of this encoder with these texts."""
    digest = hashlib.sha256()
    for part in (source.weights_sha256, source.tokenizer.json, str(source.max_tokens), repr(source.prompts)):
        digest.update(part.encode())
    for text in (*texts.pairs.queries, *texts.pairs.documents, *texts.texts):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]
