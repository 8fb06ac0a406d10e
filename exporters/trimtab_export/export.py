"""The steps of an export: source, graph, head, check, bundle."""

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts import cards, space
from trimtab.artifacts import manifest as manifests
from trimtab.errors import ExportError
from trimtab.outputs.known import OUTPUTS as FORMS
from trimtab_export import evaluate, runtime, write
from trimtab_export.graph import head, states, to_onnx, unpad
from trimtab_export.kinds.known import INPUTS, OUTPUTS
from trimtab_export.kinds.making import OutputMaker
from trimtab_export.load import load, weights
from trimtab_export.passes import to_tensorrt
from trimtab_export.source import Head, Settings, Source, SourceOutput
from trimtab_export.steps import Steps, no_progress_bars, quiet
from trimtab_export.variants.draw import draw
from trimtab_export.variants.selection import Selected, VariantRequest, put, select

VARIANT = "fp32"
NOTHING_MORE = VariantRequest()
WITHOUT = "so the bundle has none"
LIBRARIES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "tokenizers",
    "trimtab",
)


def export(
    settings: Settings,
    name: str,
    repository: Path,
    version: int | None = None,
    wanted: VariantRequest = NOTHING_MORE,
) -> bundles.Bundle:
    """Export a source into `repository`/`name`/`version`, and read the bundle back.

    Prints the steps on standard error. Raises ExportError, and leaves nothing behind, if the source cannot be
    exported faithfully or the version exists. Finished further variants are kept in a hidden folder next to
    the bundle, for the next run.
    """
    runtime.require()
    steps = Steps(total=9 + wanted.anything + wanted.tensorrt)
    with write.staged(repository, name, version) as stage, quiet():
        asked = INPUTS[settings.reads] if settings.reads is not None else None
        source = _read(settings, [OUTPUTS[kind] for kind in settings.also], steps)
        kinds = [each.declared.kind for each in source.outputs]
        if wanted.anything and kinds != ["dense"]:
            raise ExportError(
                f"variants are made of dense vectors alone, and this encoder gives {', '.join(kinds)}: ask "
                "for no variants"
            )
        plain = _as_it_is(source, stage, steps)
        scratch = stage.target.with_name(f".{stage.version}.search")
        chosen = Selected([], [], (), None)
        if wanted.anything:
            chosen = _smaller(wanted, source, plain, name, stage, scratch, steps)
        given = (asked or INPUTS[source.reads]).declare(source, stage.folder)
        largest = plain.largest if chosen.int8_limit is None else {"dense": chosen.int8_limit}
        outputs = tuple(space.named(_ranged(each.declared, largest), [given]) for each in source.outputs)
        first = plain.variant(stage.folder, outputs, chosen.cells)
        variants = (first, *(put(each, stage.folder, outputs[0], first.files) for each in chosen.variants))
        if wanted.tensorrt:
            with steps("building TensorRT engines") as say:
                variants = tuple(
                    _with_engines(each, stage.folder, source.max_tokens, say) for each in variants
                )
        with steps("writing the bundle"):
            tower = manifests.Tower(
                input=given.name, outputs=tuple(each.name for each in outputs), variants=variants
            )
            manifest = manifests.Manifest(
                name=name,
                version=stage.version,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                inputs=(given,),
                outputs=outputs,
                towers=(tower,),
                provenance=_provenance(source, settings, name, stage.version),
            )
            write.manifest(stage.folder, manifest)
    shutil.rmtree(scratch, ignore_errors=True)
    return bundles.read(stage.target)


@dataclass(frozen=True, slots=True)
class _Plain:
    """The encoder as it is, as a graph that was compared with its source.

    with_states: the same graph with inner states, and what the manifest says of it; both None where they were
    not found, or not kept. largest: the largest absolute number of each output.
    """

    files: tuple[Path, Path]
    with_states: Path | None
    states: manifests.States | None
    unpadded: bool
    parity: cards.Parity
    speed: tuple[cards.Speed, ...]
    largest: dict[str, float]

    def variant(
        self, folder: Path, outputs: Sequence[manifests.Output], cells: tuple[cards.Cell, ...]
    ) -> manifests.BundleVariant:
        """As the manifest of the bundle in `folder` has it."""
        return manifests.BundleVariant(
            name=VARIANT,
            precision="fp32",
            inputs=to_onnx.inputs_of(self.files[0]),
            tensors={
                name: tensor for each in outputs for name, tensor in OUTPUTS[each.kind].tensors(each).items()
            },
            unpadded=self.unpadded,
            files=tuple(write.entry(folder, path) for path in self.files),
            report=evaluate.report_card(self.parity, self.speed, cells),
            states=self.states,
        )


def _read(settings: Settings, also: Sequence[OutputMaker], steps: Steps) -> Source:
    """The source, with the outputs that are made for it besides its own."""
    with steps(f"reading {settings.source}") as say:
        no_progress_bars()
        source = load(settings)
        for note in source.notes:
            say(f"\n  {note}")
        weights.check_finite(source.backbone)
        pooled = any(isinstance(each.head, Head) and each.head.pooling is None for each in source.outputs)
        if also and pooled:
            raise ExportError(
                "the source's graph gives finished vectors, and other outputs need token states"
            )
        given = {each.declared.kind for each in source.outputs}
        more = [maker.derive(source) for maker in also if maker.kind not in given]
        return replace(source, outputs=(*source.outputs, *more))


def _as_it_is(source: Source, stage: write.Staged, steps: Steps) -> _Plain:
    """Convert the source, and compare the result with it; ExportError where they differ."""
    reads = INPUTS[source.reads]
    with steps("converting to ONNX"):
        backbone = to_onnx.states_graph(source, stage.work)
    with steps(f"adding the heads ({describe(source)})"):
        files = head.graft(backbone, stage.folder / VARIANT, [_grafted(each) for each in source.outputs])
    collator = reads.collator(source)
    items = reads.samples(collator.count, min(source.max_tokens, evaluate.LONGEST))
    batch = collator.in_role(items[:: len(items) // 8], source.roles[-1])
    joined, layers = None, []
    with steps("finding the inner states") as say:
        if source.outputs[0].declared.kind == "dense":  # what adapters read besides the states
            layers = states.hidden_states(files[0], source.backbone, batch)
            joined = states.write(files[0], layers) if layers else None
        say(f"{len(layers)} of them" if layers else f"not found in this graph, {WITHOUT}")
    compared = [_compared(each) for each in source.outputs]
    with steps("removing the padding"):
        products = unpad.take_padding_out(files[0], batch, partial(evaluate.agree, compared, batch))
        if joined is not None:
            unpad.take_padding_out(joined, batch)
    with steps("comparing with the source"):
        parity, largest = evaluate.compare(files[0], source, compared, items, collator)
    with steps("checking the inner states") as say:
        pooled = _pooled(joined, len(layers), files[0], batch, say)
    with steps("measuring the speed"):
        given = [tensor.name for each in compared for tensor in each.tensors.values()]
        longest = collator.in_role(items[-1:], source.roles[-1])
        speed = evaluate.measure_speed(files[0], longest, given)
    return _Plain(
        files=files,
        with_states=joined if pooled else None,
        states=pooled,
        unpadded=products > 0,
        parity=parity,
        speed=speed,
        largest=largest,
    )


def _grafted(output: SourceOutput) -> head.Maker:
    maker = OUTPUTS[output.declared.kind]
    return lambda grafter, states: maker.graft(grafter, states, output)


def _compared(output: SourceOutput) -> evaluate.Compared:
    declared = output.declared
    return evaluate.Compared(
        declared.name,
        FORMS[declared.kind].columns(declared),
        OUTPUTS[declared.kind].tensors(declared),
        output.reference,
    )


def _ranged(declared: manifests.Output, largest: Mapping[str, float]) -> manifests.Output:
    """The output with its range for int8, if it can be packed so."""
    limit = largest[declared.name] if OUTPUTS[declared.kind].in_int8 else None
    return msgspec.structs.replace(declared, int8_limit=limit)


def _smaller(
    wanted: VariantRequest,
    source: Source,
    plain: _Plain,
    name: str,
    stage: write.Staged,
    scratch: Path,
    steps: Steps,
) -> Selected:
    """The further variants, and a picture of what was measured of them."""
    with steps("making smaller and faster variants") as say:
        chosen = select(
            wanted, source, plain.files[0], plain.with_states, scratch, lambda text: say(f"\n  {text}")
        )
        report = stage.target.with_suffix(".report")
        page = draw(name, chosen.measured, chosen.cells, wanted.min_quality, report)
        say(f"\n  drawn in {page}")
    return chosen


def _provenance(source: Source, settings: Settings, name: str, version: int) -> manifests.Provenance:
    return manifests.Provenance(
        source=public_name(settings.source),
        architecture=source.architecture,
        recipe=recipe(settings, name, version),
        libraries=libraries(),
    )


def _pooled(
    joined: Path | None, layers: int, graph: Path, batch: dict[str, Any], say: Callable[[str], object]
) -> manifests.States | None:
    """The graph with pooled inner states, if there is one and it passes its check."""
    if joined is None:
        return None
    try:
        width = states.check(joined, graph, batch)
    except ExportError as error:
        joined.unlink()
        say(f"{error}, {WITHOUT}")
        return None
    return manifests.States(file=write.entry(joined.parent.parent, joined), layers=layers, width=width)


def _with_engines(
    variant: manifests.BundleVariant, folder: Path, max_tokens: int, say: Callable[[str], object]
) -> manifests.BundleVariant:
    """The variant with its engines, if they can be built."""
    graph = folder / variant.files[0].path
    if variant.runner != "onnx":
        return variant
    try:
        built = to_tensorrt.build(graph, variant.inputs, max_tokens, variant.precision)
    except ExportError as error:
        say(f"\n  {variant.name}: {error}, {WITHOUT}")
        return variant
    say(f"\n  {variant.name}: {', '.join(path.name for path in built)}")
    return msgspec.structs.replace(variant, engines=tuple(write.entry(folder, path) for path in built))


def describe(source: Source) -> str:
    """The heads in a few words."""
    return "; ".join(
        _describe(each.head) if isinstance(each.head, Head) else each.declared.kind for each in source.outputs
    )


def _describe(head: Head) -> str:
    pooling = "pooled by the source" if head.pooling is None else f"{head.pooling} pooling"
    return ", ".join([pooling, *(type(layer).__name__ for layer in head.layers)])


def public_name(source: str) -> str:
    """A source to show to others: a hub id unchanged, only the last part of a path."""
    path = Path(source)
    return path.absolute().name if path.exists() else source


def recipe(settings: Settings, name: str, version: int) -> str:
    """The command line that makes the bundle again, next to the source and the repository."""
    words = ["trimtab", "export", public_name(settings.source), "--name", name]
    words += ["--repository", "REPOSITORY", "--version", str(version)]
    if settings.pooling is not None:
        words += ["--pooling", settings.pooling]
    if settings.normalize:
        words += ["--normalize"]
    if settings.query_prompt is not None:
        words += [f"--query-prompt={settings.query_prompt}"]
    if settings.passage_prompt is not None:
        words += [f"--passage-prompt={settings.passage_prompt}"]
    if settings.output is not None:
        words += ["--output", settings.output]
    if settings.reads is not None:
        words += ["--reads", settings.reads]
    for kind in settings.also:
        words += ["--also", kind]
    if settings.max_tokens is not None:
        words += ["--max-tokens", str(settings.max_tokens)]
    if settings.role is not None:
        words += ["--role", settings.role]
    if settings.top_k is not None:
        words += ["--top-k", str(settings.top_k)]
    for token in settings.stop_tokens:
        words += [f"--stop-token={token}"]
    return shlex.join(words)


def libraries() -> dict[str, str]:
    """The versions of the software that made the bundle."""
    versions = {library: metadata.version(library) for library in LIBRARIES}
    return {**versions, "onnxruntime": runtime.require()}
