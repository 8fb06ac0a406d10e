"""Show a bundle: its space, its sizes, its origin, its variants and their report

    trimtab info models/my-encoder/1
    trimtab info --url 127.0.0.1:8001

Without a bundle, show what a server serves: each encoder's variants, the quality they keep, which are loaded.
"""

import argparse
import sys
from pathlib import Path

import msgspec

from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.artifact import Interval, provisional
from trimtab.artifacts.cards import TRAINED_ON, Cell, Fidelity, Packed
from trimtab.artifacts.manifest import BundleVariant, Input, Manifest, Output, Tower
from trimtab.commands import server_options
from trimtab.core import answers
from trimtab.core.answers import Encoder
from trimtab.inputs.known import INPUTS
from trimtab.inputs.text import Reading, TextSettings
from trimtab.kinds import RUNTIMES
from trimtab.outputs.scores import labels_of

SUMMARY = "show a bundle's manifest and report card, or what a server serves"
EXTRA = None


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", type=Path, nargs="?", help="its folder: REPOSITORY/NAME/VERSION; default: ask the server"
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    server_options.declare(parser)


def run(options: argparse.Namespace) -> int:
    shown: Manifest | list[Encoder]
    if options.bundle is None:
        with server_options.connect(options) as client:
            shown = client.encoders()
        text = "\n\n".join(describe_served(encoder) for encoder in shown)
    else:
        shown = bundles.read(options.bundle).manifest
        text = describe(shown)
    if options.json:
        text = msgspec.json.format(msgspec.json.encode(shown), indent=2).decode()
    sys.stdout.write(text + "\n")
    return 0


def describe(manifest: Manifest) -> str:
    """The manifest for people."""
    size = sum(file.size for file in manifest.files())
    provenance = manifest.provenance
    rows = [
        ("encoder", f"{manifest.name}, version {manifest.version}"),
        *(row for each in manifest.inputs for row in _input(each)),
        *(row for each in manifest.outputs for row in _output(each)),
        ("size", f"{size / 1e6:.1f} MB in {sum(1 for _ in manifest.files())} files, hashes verified"),
        ("made", f"{manifest.created} from {provenance.source} ({provenance.architecture})"),
        ("by", ", ".join(f"{name} {version}" for name, version in provenance.libraries.items())),
        ("again", provenance.recipe),
    ]
    lines = [f"{name:<16}{value}" for name, value in rows]
    for tower in manifest.towers:
        for variant in tower.variants:
            lines += ["", *_variant(manifest, tower, variant)]
    return "\n".join(lines)


def _input(given: Input) -> list[tuple[str, str]]:
    rows = [
        ("reads", f"{given.name} ({given.kind}), {given.most_units} {INPUTS[given.kind].units} of one"),
        ("query prompt", repr(given.prompts.query)),
        ("passage prompt", repr(given.prompts.passage)),
    ]
    if given.kind == "text":
        readings = msgspec.convert(given.settings, TextSettings).readings
        rows += [(f"{role} tokens", _reading(reading)) for role, reading in readings.items()]
    return rows


def _reading(reading: Reading) -> str:
    said = [f"{reading.most} at most"]
    if reading.marker is not None:
        said.append(f"marked with token {reading.marker}")
    if reading.fill is not None:
        attended = "attended to" if reading.attended else "not attended to"
        said.append(f"filled up with token {reading.fill}, {attended}")
    if reading.skipped:
        said.append(f"no vectors of {len(reading.skipped)} tokens")
    return ", ".join(said)


def _output(output: Output) -> list[tuple[str, str]]:
    if labels := labels_of(output):
        said = f"{output.settings['activation']} of {', '.join(labels)}"
        return [("gives", f"{output.name} ({output.kind}), {said}, space {output.space}")]
    length = "length 1" if output.normalized else "not normalised"
    pooling = f"{output.pooling} pooling" if output.pooling else "pooled by the source's own graph"
    pooled = f", {pooling}" if output.kind == "dense" else ""
    return [
        (
            "gives",
            f"{output.name} ({output.kind}), {output.dimensions} dimensions, {output.similarity}, {length}"
            f"{pooled}, space {output.space}",
        )
    ]


def _variant(manifest: Manifest, tower: Tower, variant: BundleVariant) -> list[str]:
    parity, kept = variant.report.parity, variant.report.fidelity
    way = f"{tower.input} to {', '.join(tower.outputs)}, " if len(manifest.towers) > 1 else ""
    lines = [
        f"variant {variant.name}: {way}{variant.precision} in {RUNTIMES[variant.runner]}, "
        f"padding {'left out of' if variant.unpadded else 'computed in'} the linear layers",
        f"  against the source   max |diff| {parity.max_abs_diff:.1e}, "
        f"min cosine {parity.min_cosine:.7f} over {parity.texts} texts",
        f"  alone or in a batch  max |diff| {parity.batch_max_abs_diff:.1e}",
        *(f"  space                {each.space} of {each.output}" for each in variant.moved),
        *(_fidelity(kept) if kept is not None else ()),
        *_cells(variant.report.cells),
        f"  speed                {variant.report.machine}",
    ]
    for speed in variant.report.speed:
        per_text = speed.milliseconds / speed.batch
        lines.append(
            f"    {speed.batch:>3} x {speed.length:>3} tokens  {speed.milliseconds:8.2f} ms  "
            f"{per_text:7.2f} ms a text"
        )
    return lines


def _fidelity(kept: Fidelity) -> list[str]:
    return [
        f"  keeps of nDCG@10     {_interval(kept.ndcg)} at worst, of R@10 {_interval(kept.recall)}",
        f"  queries alone        {_interval(kept.query_only_ndcg)} and "
        f"{_interval(kept.query_only_recall)}, in the first variant's index",
        *_sets("  ", kept),
        f"  cosine               {kept.cosine:.4f}, least {kept.min_cosine:.4f}; alone or in a batch "
        f"{kept.batch_min_cosine:.7f}",
        *_packed(kept.packed),
        "  times as fast        "
        + ", ".join(f"{each.factor:.2f} at {each.batch} x {each.length}" for each in kept.speedup),
    ]


def _sets(indent: str, kept: Fidelity) -> list[str]:
    """One line per set that judged, and whether it counts."""
    lines = [
        f"{indent}{each.kind + ':':<13}{_interval(each.ndcg)}, queries alone "
        f"{each.query_only_ndcg.value:.3f}, of {' '.join([each.name, *each.languages])}: {each.queries} "
        f"queries, {each.documents} documents"
        for each in kept.sets
    ]
    if kept.compared > 1:
        lines.append(f"{indent}chosen among {kept.compared} variants, for which the intervals allow")
    return [*lines, *([indent + provisional(TRAINED_ON)] if kept.provisional else [])]


def _packed(packed: Packed | None) -> list[str]:
    if packed is None:
        return []
    return [
        f"  packed               int8 {packed.int8_ndcg:.3f}, bits {packed.ubinary_ndcg:.3f}, queries in "
        f"float32 and documents in bits {packed.ubinary_documents_ndcg:.3f} of nDCG@10"
    ]


def _cells(cells: tuple[Cell, ...]) -> list[str]:
    """One line per depth: what each width keeps, alone / searching the whole encoder's index."""
    lines = []
    for depth in sorted({cell.layers for cell in cells}):
        kept = [
            f"{cell.dimensions}: {cell.ndcg:.3f} / {cell.query_only_ndcg:.3f}"
            for cell in cells
            if cell.layers == depth
        ]
        lines.append(f"  {depth:>3} layers, width    {'  '.join(kept)}")
    return lines


def describe_served(encoder: Encoder) -> str:
    """A server's description of an encoder, for people."""
    lines = [
        f"{encoder.name}, version {encoder.version}: {encoder.dimensions} dimensions, {encoder.similarity}, "
        f"reads {encoder.max_tokens} tokens, space {encoder.space}"
    ]
    for variant in encoder.variants:
        lines.append(_served(variant))
        if (kept := variant.fidelity) is not None:
            fastest = ", ".join(f"{each.factor:.2f} at {each.batch} x {each.length}" for each in kept.speedup)
            lines += [
                f"    keeps of nDCG@10   {_interval(kept.ndcg)}",
                f"    queries alone      {_interval(kept.query_only_ndcg)}",
                *_sets("    ", kept),
                f"    times as fast      {fastest}",
            ]
    return "\n".join(lines)


def _served(variant: answers.Variant) -> str:
    loaded = "loaded" if variant.loaded else "not loaded"
    known = next((called for name, called in RUNTIMES.items() if name == variant.runtime), variant.runtime)
    runtime = f" in {known}" if known else ""
    depth = f", {variant.layers} layers" if variant.layers else ""
    return (
        f"  {variant.name}: {loaded}, {variant.precision}{runtime}{depth}, {variant.dimensions} dimensions, "
        f"space {variant.space}"
    )


def _interval(figure: Interval) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
